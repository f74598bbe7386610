"""Static shapes for a model's inputs: what the model states, completed by what the deployfile binds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import TensorShapeProto, ValueInfoProto

from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.protos import dtype_of

ANONYMOUS = ("", "?", "None")
"""Spellings of "some number" that exporters use for unrelated dimensions; every other name is one number everywhere."""

Dim = int | str


def bind_inputs(
    inputs: Sequence[ValueInfoProto], shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int],
) -> dict[str, TensorType]:
    """The static type of every input. `shapes` gives whole shapes by input, `dims` numbers by symbolic dimension.

    A symbolic dimension bound through one input's shape is bound for all. Raises ImportModelError: a name that does not
    exist, a shape that contradicts the model, or dimensions still unknown - all of them in one message.
    """
    stated = {i.name: _stated(i) for i in inputs}
    dtypes = {i.name: dtype_of(i.type.tensor_type.elem_type, f"input {i.name!r}") for i in inputs}
    _check_names(stated, shapes, dims)
    bound = dict(dims)
    for name, given in shapes.items():
        _bind(name, stated[name], given, bound)
    types: dict[str, TensorType] = {}
    open_inputs: list[str] = []
    for name, dims_of in stated.items():
        shape = _shape(dims_of, shapes.get(name), bound)
        if shape is None:
            open_inputs.append(name)
        else:
            types[name] = TensorType.plain(shape, dtypes[name])
    if open_inputs:
        lines = [f"input {name!r} is {_show(stated[name])}" for name in open_inputs]
        raise ImportModelError("dimensions are not known: " + "; ".join(lines),
                               fix="set in the deployfile (or give toolchain.compile), with a number for each '?': "
                                   + _missing([(name, stated[name]) for name in open_inputs], bound))
    return types


def _shape(
    stated: tuple[Dim, ...] | None, given: tuple[int, ...] | None, bound: Mapping[str, int],
) -> tuple[int, ...] | None:
    if given is not None or stated is None:
        return given
    shape = tuple(bound.get(d) if isinstance(d, str) else d for d in stated)
    return None if None in shape else tuple(d for d in shape if d is not None)


def _stated(value: ValueInfoProto) -> tuple[Dim, ...] | None:
    """The dimensions as the model states them: numbers, or names of symbolic ones. None: not even the rank."""
    if value.type.WhichOneof("value") != "tensor_type":
        kind = (value.type.WhichOneof("value") or "nothing").removesuffix("_type")
        raise ImportModelError(f"is a {kind}; only tensors are supported", where=f"input {value.name!r}")
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(map(_dim, value.type.tensor_type.shape.dim))


def _dim(dim: TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.dim_param not in ANONYMOUS else "?"        # some exporters write -1


def _check_names(
    stated: Mapping[str, tuple[Dim, ...] | None], shapes: Mapping[str, object], dims: Mapping[str, int],
) -> None:
    if unknown := [name for name in shapes if name not in stated]:
        raise ImportModelError(f"there is no input {', '.join(map(repr, unknown))}", where="shapes",
                               fix=f"the inputs are: {', '.join(stated)}")
    symbols = {d for s in stated.values() for d in s or () if isinstance(d, str) and d != "?"}
    if unknown := [name for name in dims if name not in symbols]:
        has = f"the symbolic dimensions are: {', '.join(sorted(symbols))}" if symbols else "it has none with a name"
        raise ImportModelError(f"there is no symbolic dimension {', '.join(map(repr, unknown))}", where="dims", fix=has)
    for name, n in dims.items():
        if n < 0:
            raise ImportModelError(f"dimension {name!r} is {n}", where="dims")


def _bind(name: str, stated: tuple[Dim, ...] | None, given: tuple[int, ...], bound: dict[str, int]) -> None:
    """Check one input's given shape against the model, and note what it says about symbolic dimensions."""
    if any(n < 0 for n in given) or (stated is not None and len(stated) != len(given)):
        raise ImportModelError(f"shape {list(given)} does not fit input {name!r}, which is {_show(stated)}", where="shapes")
    for at, (d, n) in enumerate(zip(stated or (), given)):
        if isinstance(d, int) and d != n:
            raise ImportModelError(f"dimension {at} of input {name!r} is {d} in the model, {n} in the deployfile",
                                   where="shapes")
        if isinstance(d, str) and d != "?" and bound.setdefault(d, n) != n:
            raise ImportModelError(f"dimension {d!r} is {bound[d]} elsewhere, but {n} in input {name!r}", where="shapes")


def _show(stated: tuple[Dim, ...] | None) -> str:
    return "of unknown rank" if stated is None else f"[{', '.join(map(str, stated))}]"


def _missing(open_inputs: Sequence[tuple[str, tuple[Dim, ...] | None]], bound: Mapping[str, int]) -> str:
    """The keys to fill in: the dimensions' names where all of them have one, else whole shapes."""
    unknown = [d for _, dims in open_inputs for d in dims or ("?",) if isinstance(d, str) and d not in bound]
    if "?" in unknown:
        return "; ".join(f"models.<name>.shapes.{name}: {_example(dims, bound)}" for name, dims in open_inputs)
    return f"models.<name>.dims: {{{', '.join(f'{d}: ?' for d in dict.fromkeys(unknown))}}}"


def _example(stated: tuple[Dim, ...] | None, bound: Mapping[str, int]) -> str:
    if stated is None:
        return "[...]"
    return f"[{', '.join(str(bound.get(d, '?')) if isinstance(d, str) else str(d) for d in stated)}]"
