"""The forward sweep of the importer: NodeProto by NodeProto to typed nodes, constants folded on the way.

A `Sweep` builds one Graph. Within it, `Names` says what the proto's value names stand for: function bodies and taken
branches are inlined into the scope of their caller under names of their own. A loop or branch that stays becomes a Sweep
of its own; what it reads from outside becomes an explicit input (see infer.py) or, when constant, a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto

from toolchain.core.dtype import itemsize, to_numpy
from toolchain.core.errors import ImportModelError, MisfitError
from toolchain.core.layout import TensorType
from toolchain.graph.importers.bounded import Bounding, finish
from toolchain.graph.importers.bounded_branches import one_type
from toolchain.graph.importers.bounded_rules import ELEMENTWISE, MAKES, apply_rule
from toolchain.graph.importers.bounded_shapes import DECIDED_BY, follow, is_followed
from toolchain.graph.importers.contrib import contrib_function
from toolchain.graph.importers.coverage import WRITTEN_OUT, has_function, is_covered
from toolchain.graph.importers.flex_attention import flex_attention
from toolchain.graph.importers.forms import check_form, constant_of, plain
from toolchain.graph.importers.names import Model, Names
from toolchain.graph.importers.scope import Scope
from toolchain.graph.importers.unroll import Writer, peel_loop, scan_batch, unroll_loop
from toolchain.graph.importers.upgrade import UPGRADES, VANISHES, upgrade
from toolchain.graph.infer import infer, where
from toolchain.graph.interpret import evaluate
from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import RANDOM
from toolchain.graph.protos import OPSET, attribute_value, node_proto, schema, type_proto

CONTROL = frozenset({"If", "Loop", "Scan"})
BY_SHAPE = frozenset({"Shape", "Size"})
"""Operators that read only the shape of their input: constant even when the input is not."""


def read_graph(
    model: Model, proto: GraphProto, inputs: Mapping[str, TensorType], opset: int, constants: Mapping[str, np.ndarray],
) -> Graph:
    """The main graph; `constants` replace inputs. Raises ImportModelError naming the node or value at fault."""
    scope, names = Sweep(model, proto.name or "main", reserved=_all_names(proto)), Names(opset, 0)
    for name, array in constants.items():
        scope.add_constant(name, array, names)
    return scope.read(proto, inputs, names)


def _all_names(proto: GraphProto) -> set[str]:
    given = {v.name for v in (*proto.input, *proto.initializer)}
    return given | {t.values.name for t in proto.sparse_initializer} | {o for n in proto.node for o in n.output}


class Sweep(Scope):
    """Reads protos into its scope. Also the `upgrade.Context` of the rules that convert its nodes."""

    # --- graphs

    def read(self, proto: GraphProto, inputs: Mapping[str, TensorType], names: Names) -> Graph:
        """The main graph."""
        self.read_all(proto, inputs, names)
        outputs = tuple(o.name for o in proto.output)
        self._name_outputs(dict.fromkeys(outputs), names)
        for name in outputs:
            self.refuse_loose(name, f"output {name!r}")
        extents, counts = finish(self, outputs)
        return replace(self._graph((*outputs, *counts)), extents=extents)

    def read_body(
        self, proto: GraphProto, inputs: Mapping[str, TensorType], names: Names, first: int = 0,
    ) -> tuple[str, ...]:
        """The nodes of a body; gives its outputs, which nobody asks for by name. `first`: rounds count from there."""
        self.read_all(proto, inputs, names, first)
        return tuple(self.resolve(o.name, names, f"output {o.name!r}") for o in proto.output)

    def read_all(self, proto: GraphProto, inputs: Mapping[str, TensorType], names: Names, first: int = 0) -> None:
        for name, t in inputs.items():
            here = f"input {name!r}"
            self.model.check_value(name, t, here)
            self.types[value := self._define(name, names, here)] = t
            self.inputs.append(value)
        if first:
            node = Node("Add", (self.inputs[0], self.constant("first", np.asarray(first, "int64"))), (self.fresh("round"),),
                        name=self.node_name("round"))
            self.emit_static(node)
            names.values[proto.input[0].name] = node.output
        self._read_initializers(proto, names)
        self._read_nodes(proto.node, names)

    def _read_initializers(self, proto: GraphProto, names: Names) -> None:
        for t in proto.initializer:
            here = f"initializer {t.name!r}"
            self._add_param(self._define(t.name, names, here), self.model.reader.array(t, here))
        for s in proto.sparse_initializer:
            here = f"initializer {s.values.name!r}"
            self._add_param(self._define(s.values.name, names, here), self.model.reader.sparse(s, here))

    def _read_nodes(self, protos: Iterable[NodeProto], names: Names) -> None:
        for index, proto in enumerate(protos):
            name = names.prefix + (proto.name or f"{proto.op_type}_{index}")
            self._read_node(proto, name, names)

    # --- nodes

    def _read_node(self, proto: NodeProto, name: str, names: Names) -> None:
        here = f"node {name!r} ({proto.op_type})"
        self.model.count_node(here)
        function = self.model.functions.get((proto.domain, proto.op_type, proto.overload)) or contrib_function(proto)
        if function is not None:
            self._inline_function(proto, name, names, function)
            return
        if (proto.domain, proto.op_type) in WRITTEN_OUT:
            inputs = tuple(self.resolve(i, names, here) if i else "" for i in proto.input)
            attrs, source = self._attrs(proto, names, here), names.source or name
            node = Node(proto.op_type, inputs, (), attrs, self.node_name(name), (source,))
            self.bind(proto.output[0], flex_attention(Writer(self, node, names), node, here), names, here)
            return
        known = schema(proto.op_type, names.opset) if proto.domain in ("", "ai.onnx") else None
        if known is None or (known.deprecated and proto.op_type not in UPGRADES):
            domain = f"{proto.domain}." if proto.domain else ""
            raise ImportModelError(f"ONNX opset {names.opset} has no operator {domain}{proto.op_type}", where=here)
        inputs = tuple(self.resolve(i, names, here) if i else "" for i in proto.input)
        check_form(proto, known, here)
        source = names.source or name
        node = Node(proto.op_type, _trimmed(inputs), (), self._attrs(proto, names, here), self.node_name(name), (source,))
        if proto.op_type == "Constant":
            self._add_param(self._define(proto.output[0], names, here), constant_of(node, here))
            return
        if proto.op_type in CONTROL:
            self._control_or_unrolled(node, proto, names, here)
            return
        self._convert(node, proto.output, names, here)

    def _convert(self, node: Node, outputs: Iterable[str], names: Names, here: str) -> None:
        """Define the outputs, bring the node to the newest opset, and emit what comes of it."""
        wanted = _trimmed(tuple(outputs))
        made = tuple(self._define(o, names, here) if o else "" for o in wanted)
        for new in upgrade(replace(node, outputs=made), names.opset, self):
            if new.op == "Identity":                    # %y = Identity(%x)   ->   y is another name for x
                names.values[wanted[made.index(new.output)]] = new.inputs[0]
            else:
                self.emit(new, names)

    def emit(self, node: Node, names: Names) -> None:
        """Add a converted node: its value when all it reads is constant, else itself; expanded when nobody supports it."""
        here = where(node)
        known = node.op not in RANDOM and node.op not in CONTROL
        constant = known and all(i in self.params and i not in self.extents for i in node.inputs if i)
        if not constant and self._is_foreign(node.op) and self._expand(node, names):
            return
        if constant and node.op in MAKES:
            self._fold_by_data(node, here)
            return
        if constant:
            self.emit_static(node)
        else:
            self.emit_by_rule(node)

    def emit_by_rule(self, node: Node) -> None:
        """Add a node by the rule of its operator where a shape of it depends on data, else as it is."""
        if self.loose and any(i in self.loose for i in node.inputs):
            self._emit_loose(node)
        if node.op in CONTROL:                          # a body knows of the extents of what it captures
            if any(i in self.extents for i in _own_inputs(node)):
                raise ImportModelError("the shape of a loop's state depends on data; that is not supported",
                                       where=where(node), fix="export the model with a state of fixed length")
        elif self._depends_on_data(node):
            apply_rule(Bounding(self, node), node)
            return
        self.emit_static(node)
        if is_followed(self, node) and (known := follow(Bounding(self, node), node)) is not None:
            self.nodes = [n for n in self.nodes if n is not node]
            self.params[node.output] = known

    def _emit_loose(self, node: Node) -> None:
        """A value that may have fewer leading ones is read by what broadcasts; another operand of as many dimensions ends
        it. Conditions may have any."""
        if node.op in CONTROL:
            condition = {"If": 0, "Loop": 1}.get(node.op, -1)
            for n, i in enumerate(_own_inputs(node)):
                if n != condition:
                    self.refuse_loose(i, where(node))
            return
        if node.op not in ELEMENTWISE:
            for i in node.inputs:
                self.refuse_loose(i, where(node))
        ranks = [len(self.types[i].shape) for i in node.inputs if i]
        if max(len(self.types[i].shape) for i in node.inputs if i and i in self.loose) == max(ranks) and not any(
                i and i not in self.loose and len(self.types[i].shape) == max(ranks) for i in node.inputs):
            self.loose.update(o for o in node.outputs if o)

    def _depends_on_data(self, node: Node) -> bool:
        """Whether a shape of the node does: that of an input, or of what it makes."""
        if node.op in MAKES or any(i in self.extents for i in node.inputs):
            return True
        decided = [node.inputs[n] for n in DECIDED_BY.get(node.op, ()) if n < len(node.inputs) and node.inputs[n]]
        return any(i not in self.params for i in decided)

    def emit_static(self, node: Node) -> None:
        """Add a node all of whose shapes are static, or its value when all it reads is constant."""
        here = where(node)
        types = infer(node, self.types, self.params)
        for name, t in zip(node.outputs, types, strict=True):
            if name:
                self.model.check_value(name, t, here)
                self.types[name] = t
        known = node.op not in RANDOM and node.op not in CONTROL and not _is_narrow(node, types)
        if node.op in BY_SHAPE or (known and all(i in self.params for i in node.inputs if i)):
            self._fold(node, types, here)
        else:
            self.nodes.append(node)
            self._note_ranges(node)

    def _fold(self, node: Node, types: tuple[TensorType, ...], here: str) -> None:
        if node.op != "ConstantOfShape":                # which makes a view of one element
            self.model.count_folded(sum(t.elements * itemsize(t.dtype) for t in types), here)
        arrays = [_stand_in(self.types[i]) if node.op in BY_SHAPE else self.params[i] if i else None for i in node.inputs]
        for name, t, array in zip(node.outputs, types, _evaluate(node, arrays, here), strict=False):
            if name:
                if array.shape != t.shape:
                    raise ImportModelError(f"yields {list(array.shape)} where its type says {t}", where=here)
                self.params[name] = array if array.dtype.name == t.dtype else array.astype(to_numpy(t.dtype))

    def _fold_by_data(self, node: Node, here: str) -> None:
        """Of constants even these operators have a shape. They yield at most 8 bytes times rank per element."""
        arrays = [self.params[i] if i else None for i in node.inputs]
        self.model.count_folded(sum(8 * a.size * max(a.ndim, 1) for a in arrays if a is not None), here)
        for name, array in zip(node.outputs, _evaluate(node, arrays, here)):
            if name:
                self._add_param(name, array)

    # --- attributes

    def _attrs(self, proto: NodeProto, names: Names, here: str) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        for a in proto.attribute:
            if a.ref_attr_name:
                if names.attrs is None:
                    raise ImportModelError(f"attribute {a.name!r} refers to a function's, outside a function", where=here)
                if a.ref_attr_name in names.attrs:
                    attrs[a.name] = names.attrs[a.ref_attr_name]
            elif a.type == AttributeProto.TENSOR:
                attrs[a.name] = self.model.reader.array(a.t, f"{here}, attribute {a.name!r}")
            elif a.type == AttributeProto.SPARSE_TENSOR:
                attrs[a.name] = self.model.reader.sparse(a.sparse_tensor, f"{here}, attribute {a.name!r}")
            elif a.type == AttributeProto.GRAPH:
                attrs[a.name] = a.g                     # read by _control, which knows the types of its inputs
            else:
                attrs[a.name] = plain(a, here)
        return attrs

    # --- functions

    def _inline_function(self, proto: NodeProto, name: str, names: Names, function: FunctionProto) -> None:
        """%y = f(%x) {a=1}   ->   the nodes of f, its formal names bound to x, y and a"""
        here = f"node {name!r} ({proto.op_type})"
        self.model.check_depth(names.depth + 1, here)
        if len(proto.input) > len(function.input) or len(proto.output) > len(function.output):
            raise ImportModelError(f"has more inputs or outputs than function {function.name!r}", where=here)
        attrs = {a.name: plain(a, here) for a in function.attribute_proto} | self._attrs(proto, names, here)
        given = {formal: self.resolve(i, names, here) for formal, i in zip(function.input, proto.input) if i}
        results = self._inline(function, given, attrs, name, names, names.source, here)
        for formal, out in zip(function.output, proto.output):
            if out:
                self.bind(out, results[formal], names, here)

    def _inline(
        self, function: FunctionProto, given: dict[str, str], attrs: Mapping[str, Any], name: str, names: Names, source: str,
        here: str,
    ) -> dict[str, str]:
        opset = next((int(o.version) for o in function.opset_import if o.domain in ("", "ai.onnx")), names.opset)
        if opset > OPSET:
            raise ImportModelError(f"function {function.name!r} uses ONNX opset {opset}, newer than {OPSET}", where=here)
        missing = {formal: "" for formal in function.input if formal not in given}
        inner = Names(opset, names.depth + 1, {**given, **missing}, attrs, prefix=f"{name}/", source=source)
        self._read_nodes(function.node, inner)
        return {o: self.resolve(o, inner, here) for o in function.output if o in inner.values}

    def _is_foreign(self, op: str) -> bool:
        supported = self.model.supported
        return supported is not None and op not in supported and op not in VANISHES and has_function(op)

    def _expand(self, node: Node, names: Names) -> bool:
        """An operator without an implementation that ONNX describes by simpler ones: those take its place, if supported."""
        here = where(node)
        self.model.check_depth(names.depth + 1, here)
        known = schema(node.op)
        assert known is not None
        if known.has_function:
            function = known.function_body
        else:
            given_types = [type_proto(self.types[i]).SerializeToString() if i else b"" for i in node.inputs]
            function = FunctionProto.FromString(
                known.get_context_dependent_function(node_proto(node).SerializeToString(), given_types))
        if not is_covered(function, self.model.supported or (), self.model.limits.depth):
            return False
        given = {formal: i for formal, i in zip(function.input, node.inputs) if i}
        defaults = {a: attribute_value(p.default_value) for a, p in known.attributes.items() if p.default_value.type}
        start = len(self.nodes)
        results = self._inline(function, given, {**defaults, **node.attrs}, node.name, names, node.sources[0], here)
        for formal, out in zip(function.output, node.outputs):
            if out:
                value = results[formal]
                self._rename(value, out, start, node)
                results = {f: out if v == value else v for f, v in results.items()}
        return True

    def _rename(self, value: str, out: str, start: int, node: Node) -> None:
        """The expanded value takes the name the rest of the model reads; nodes from `start` on made it."""
        self.types[out] = self.types[value]
        if value in self.extents:
            self.extents[out] = self.extents[value]
        if value in self.params:
            self.params[out] = self.params[value]
        elif any(value in n.outputs for n in self.nodes[start:]):
            self.rename({value: out}, start)
        else:
            self.nodes.append(Node("Identity", (value,), (out,), {}, self.node_name(f"{node.name}/{out}"), node.sources))

    # --- control flow

    def _control_or_unrolled(self, node: Node, proto: NodeProto, names: Names, here: str) -> None:
        """A loop whose body needs more to be static than it has, such as the number of the round, is written out."""
        if node.op == "Scan" and names.opset < 9:
            scan_batch(self, node, proto, names, here)
            return
        before = dict(names.values)
        try:
            self.control(node, proto.output, names, here)
        except ImportModelError as error:
            names.values = before
            if node.op != "Loop" or not (
                    (isinstance(error, MisfitError) and peel_loop(self, node, proto, names, here))
                    or unroll_loop(self, node, proto, names, here)):
                raise

    def control(self, node: Node, proto_outputs: Sequence[str], names: Names, here: str) -> None:
        """If, Loop, Scan."""
        self.model.check_depth(names.depth + 1, here)
        if node.op == "If" and node.inputs[0] in self.params:
            taken: GraphProto = node.attrs["then_branch" if self.params[node.inputs[0]].all() else "else_branch"]
            self._inline_branch(taken, node, proto_outputs, names, here)
            return
        bodies = {key: value for key, value in node.attrs.items() if isinstance(value, GraphProto)}
        given = self._body_inputs(node, names, here)
        scopes: dict[str, Sweep] = {}
        results: dict[str, tuple[str, ...]] = {}
        misfits: dict[str, MisfitError] = {}
        for key, body in bodies.items():
            if len(body.input) != len(given):
                raise ImportModelError(f"its {key} has {len(body.input)} inputs, {len(given)} are given", where=here)
            scope = scopes[key] = Sweep(self.model, f"{node.name}.{key}", _all_names(body), (self, names))
            inner = Names(names.opset, names.depth + 1, attrs=None)
            try:
                own = dict(zip((i.name for i in body.input), given))
                results[key] = scope.read_body(body, own, inner, node.attrs.get("first", 0))
            except MisfitError as error:
                misfits[key] = error
                if node.op != "If" or len(misfits) == len(bodies):
                    raise
        outputs, bounds, loose = self._joined(node, proto_outputs, scopes, results)
        graphs = {key: scopes[key]._graph(results[key]) for key in results}
        for key, misfit in misfits.items():
            (other,) = graphs.values()
            scopes[key], graphs[key] = self._failing_branch(node, key, other, misfit)
        captured = tuple(dict.fromkeys(
            value for scope in scopes.values() for value, local in scope.captured.items() if local not in scope.params))
        for key, scope in scopes.items():
            graphs[key] = scope.with_captures(graphs[key], captured, self.types)
        attrs = {key: value for key, value in {**node.attrs, **graphs}.items() if key != "first"}
        if node.op != "If" and captured:
            attrs["captures"] = len(captured)
        inputs = node.inputs
        if node.op == "Loop":
            inputs = (*inputs, "", "")[:2] + inputs[2:] if len(inputs) >= 2 else (*inputs, *("",) * (2 - len(inputs)))
        self._convert(replace(node, inputs=(*inputs, *captured), attrs=attrs), outputs, names, here)
        self.note_results(outputs, bounds, loose, names)

    def _joined(
        self, node: Node, outputs: Sequence[str], scopes: Mapping[str, Sweep], results: dict[str, tuple[str, ...]],
    ) -> tuple[tuple[str, ...], list[tuple[int, ...]], set[int]]:
        """The node's outputs, those for extents behind them, the bounds of these, and which are loose; the results of
        branches become of one type. Those of loops have to be static."""
        if node.op != "If":
            for key, values in results.items():
                for n, value in enumerate(values):
                    if n or node.op != "Loop":
                        scopes[key].refuse_loose(value, f"graph {scopes[key].name!r}")
                    if value in scopes[key].extents:
                        raise ImportModelError("the shape of a loop's result depends on data; that is not supported",
                                               where=f"graph {scopes[key].name!r}",
                                               fix="export the model with a result of fixed length")
            return tuple(outputs), [], set()
        made, bounds, loose = one_type(node, [scopes[key] for key in results], list(results.values()))
        results.update(zip(tuple(results), made))
        wanted = (*outputs, *("",) * (len(bounds) - len(outputs)))
        extra = tuple(self.fresh(f"{node.name}/extent{n}") for n in range(len(made[0]) - len(bounds)))
        return (*wanted, *extra), bounds, loose

    def _failing_branch(self, node: Node, key: str, other: Graph, error: MisfitError) -> tuple[Sweep, Graph]:
        """In place of a branch that these shapes do not fit, one that ends the run: ONNX asks of a branch to fit when it is
        taken, and a model for two sample rates has frames of one length in each.

            If(c) {then: y = MatMul(x: [1, 3], w: [4, 5])}   ->   If(c) {then: y = Fail()}
        """
        types = {f"{o}.failed": other.types[o] for o in other.outputs}
        reason = f"{error.where}: {error.what}"
        made = Node("Fail", (), tuple(types), {"types": tuple(types.values()), "reason": reason}, f"{node.name}.{key}.fail",
                    node.sources)
        name = f"{node.name}.{key}"
        return Sweep(self.model, name, (), None), Graph(name, (made,), (), tuple(types), types)

    def with_captures(self, body: Graph, captured: tuple[str, ...], types: Mapping[str, TensorType]) -> Graph:
        """`body` with one last input per captured value, in that order; one it does not read gets an unused input."""
        own = [i for i in body.inputs if i not in self.captured.values()]
        for value in captured:
            if value not in self.captured:
                self.captured[value] = local = self.fresh(value)
                self.types[local] = types[value]
        inputs = (*own, *(self.captured[v] for v in captured))
        return replace(body, inputs=inputs, types={**body.types, **{i: self.types[i] for i in inputs}})

    def _body_inputs(self, node: Node, names: Names, here: str) -> list[TensorType]:
        """Types of a body's own inputs, from what the node is given."""
        if node.op == "If":
            return []
        if node.op == "Loop":
            states = [self.types[i] for i in node.inputs[2:]]
            return [TensorType.plain((), "int64"), TensorType.plain((), "bool"), *states]
        scans = node.attrs["num_scan_inputs"]
        count = len(node.inputs) - scans
        axes = node.attrs.get("scan_input_axes", (0,) * scans)
        if scans < 1 or count < 0 or len(axes) != scans:
            raise ImportModelError(f"num_scan_inputs={scans} does not fit its {len(node.inputs)} inputs", where=here)
        types = [self.types[i] for i in node.inputs]
        return types[:count] + [_element(t, axis, here) for t, axis in zip(types[count:], axes)]

    def _inline_branch(self, branch: GraphProto, node: Node, outputs: Sequence[str], names: Names, here: str) -> None:
        """If(true) {then: ...}   ->   the nodes of the branch taken"""
        if len(branch.output) != len(outputs):
            raise ImportModelError(f"its branch yields {len(branch.output)} values, {len(outputs)} are named", where=here)
        for value, out in zip(self.inline_graph(branch, (), f"{node.name}/", names, here), outputs):
            if out:
                self.bind(out, value, names, here)

    def inline_graph(self, body: GraphProto, given: Sequence[str], prefix: str, names: Names, here: str) -> list[str]:
        """The nodes of a body in this scope, its inputs bound to values that are here; gives its outputs."""
        if len(body.input) != len(given):
            raise ImportModelError(f"a graph of it has {len(body.input)} inputs, {len(given)} are given", where=here)
        inputs = {i.name: value for i, value in zip(body.input, given)}
        inner = Names(names.opset, names.depth + 1, inputs, names.attrs, prefix, outer=names, source=names.source)
        self._read_initializers(body, inner)
        self._read_nodes(body.node, inner)
        return [self.resolve(o.name, inner, here) for o in body.output]


def _own_inputs(node: Node) -> tuple[str, ...]:
    """Of a control flow node: without what its bodies capture."""
    return node.inputs[:1] if node.op == "If" else node.inputs[:len(node.inputs) - node.attrs.get("captures", 0)]


def _is_narrow(node: Node, types: tuple[TensorType, ...]) -> bool:
    """Weights stated in few bits: whether they are needed as numbers, the target's products decide."""
    return node.op == "DequantizeLinear" and len(types[0].shape) > 1


def _trimmed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Without missing optional values at the end."""
    while names and not names[-1]:
        names = names[:-1]
    return names


def _evaluate(node: Node, arrays: Sequence[np.ndarray | None], here: str) -> tuple[np.ndarray, ...]:
    try:
        return evaluate(node, arrays)
    except (ValueError, TypeError, IndexError, ArithmeticError, KeyError, AssertionError) as e:
        raise ImportModelError(f"cannot be computed: {type(e).__name__}: {e}", where=here) from e


def _stand_in(t: TensorType) -> np.ndarray:
    """An array of that shape that takes no memory."""
    return np.broadcast_to(np.zeros((), to_numpy(t.dtype)), t.shape)


def _element(t: TensorType, axis: int, here: str) -> TensorType:
    """The type of one slice of a scan input."""
    if not -len(t.shape) <= axis < len(t.shape):
        raise ImportModelError(f"scan axis {axis} of {t}", where=here)
    at = axis % len(t.shape)
    return TensorType.plain(t.shape[:at] + t.shape[at + 1:], t.dtype)
