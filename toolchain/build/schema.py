"""Checks a deployfile against the classes of deployfile.py, and makes the JSON schema for editors. Alone uses pydantic.

`check` collects every error of the file: pydantic's (types, unknown keys, bounds), then what types cannot say (names that
refer to nothing, keys that exclude each other, capabilities that are not there yet).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from toolchain.build.caret import Problem, printable
from toolchain.build.deployfile import Deployfile, Section, keys_of, strip_optional
from toolchain.build.yaml_tree import Node, YamlError, clip, parse
from toolchain.core.suggest import closest, did_you_mean

Keys = tuple[str | int, ...]


@cache
def _adapter() -> TypeAdapter[Deployfile]:
    return TypeAdapter(Deployfile)


def check(data: bytes) -> dict[str, Any]:
    """The checked plain data of a deployfile's bytes: every default filled in, quantities as numbers; `from_json` reads it.

    Raises Problems, which holds all that is wrong.
    """
    try:
        tree, errors = parse(data)
    except YamlError as error:
        raise Problems([_yaml_problem(error)]) from None
    problems = [_yaml_problem(e) for e in errors]
    if not isinstance(tree.value, dict):
        raise Problems([Problem(tree.line, tree.column, "a deployfile is a mapping of keys", length=tree.length,
                                fix="start with 'version: 1' and 'models:'")])
    problems += _cross_checks(tree)
    try:
        deployfile = _adapter().validate_json(json.dumps(tree.to_plain()), strict=True)
    except ValidationError as error:
        problems += _problems(tree, error.errors(include_url=False), {(p.line, p.column) for p in problems})
        raise Problems(problems) from None
    if problems:
        raise Problems(problems)
    return cast(dict[str, Any], _adapter().dump_python(deployfile, mode="json"))


class Problems(Exception):
    """Everything wrong with a deployfile."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


def locate(data: bytes, keys: Keys, what: str, *, fix: str = "", at_key: bool = False) -> Problem:
    """A problem found later (a file that is missing, an input the model does not have), placed at its key."""
    tree, _ = parse(data)
    node = tree.find(keys, at_key=at_key)
    return Problem(node.line, node.column, what, length=node.length, keys=keys, fix=fix)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a deployfile, draft-07 (what the YAML language server speaks)."""
    schema = _draft_07(_adapter().json_schema())
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "deployfile.yaml", **schema}


def _draft_07(node: Any) -> Any:
    """Rename what draft 2020-12 calls otherwise; drop pydantic's generated titles.

    {"$defs": D, "$ref": "#/$defs/X", "default": d}
        ->  {"definitions": D, "allOf": [{"$ref": "#/definitions/X"}], "default": d}
    """
    if isinstance(node, list):
        return [_draft_07(item) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for name, value in node.items():
        if name == "$defs":
            out["definitions"] = {k: _draft_07(v) for k, v in value.items()}
        elif name == "properties":
            out["properties"] = {k: _draft_07(v) for k, v in value.items()}
        elif name == "default":
            out["default"] = value
        elif name == "$ref":
            out["$ref"] = value.replace("#/$defs/", "#/definitions/")
        elif name != "title":
            out[name] = _draft_07(value)
    if "$ref" in out and len(out) > 1:              # draft-07 ignores what stands beside a $ref
        out["allOf"] = [{"$ref": out.pop("$ref")}]
    return out


# --- pydantic's errors in our words ---------------------------------------------------------------------------------------

_EXPECTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "int_parsing_size": "a smaller whole number",
    "float_type": "a number", "string_type": "text", "bool_type": "true or false", "finite_number": "a finite number",
    "dataclass_type": "a mapping", "dict_type": "a mapping", "mapping_type": "a mapping",
    "tuple_type": "a list", "list_type": "a list",
}
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_BOUNDS = {"greater_than": "greater than {gt}", "greater_than_equal": "at least {ge}", "less_than": "less than {lt}",
           "less_than_equal": "at most {le}"}


_EXPLAINED = 100            # errors that get words: a hostile file may hold thousands, and suggestions cost time


def _problems(tree: Node, errors: list[Any], taken: set[tuple[int, int]]) -> list[Problem]:
    """pydantic's errors in the order of the file, but none where another one stands already."""
    places = [tree.find(tuple(e["loc"]), at_key=e["type"] in _UNKNOWN) for e in errors]
    ordered = sorted(zip(errors, places), key=lambda pair: (pair[1].line, pair[1].column))
    found = [_problem(tree, e) for e, _ in ordered[:_EXPLAINED]]
    found += [Problem(place.line, place.column, "wrong") for _, place in ordered[_EXPLAINED:]]
    return [p for p in found if (p.line, p.column) not in taken]


def _problem(tree: Node, error: Any) -> Problem:
    """One pydantic error, placed in the file."""
    kind, keys, ctx = error["type"], tuple(error["loc"]), error.get("ctx", {})
    if kind in ("missing", "missing_keyword_only_argument"):
        return _at(tree, keys[:-1], f"missing key '{keys[-1]}'", at_key=True, fix=f"add '{keys[-1]}': {_meaning(keys)}")
    if kind in _UNKNOWN:
        return _unknown_key(tree, keys)
    found = tree.find(keys)
    if kind in _EXPECTED:
        return _at(tree, keys, f"expected {_EXPECTED[kind]}, found {_describe(found)}", fix=_type_fix(kind, found, keys))
    if kind in _BOUNDS:
        return _at(tree, keys, f"must be {_BOUNDS[kind].format(**ctx)}, found {_describe(found)}")
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", ctx["expected"]) or [ctx["expected"]]
        if len(options) == 1:
            return _at(tree, keys, f"must be {options[0]}, found {_describe(found)}")
        near = closest(str(found.value), options)
        return _at(tree, keys, f"{_describe(found)} is none of {', '.join(options)}",
                   fix=f"did you mean '{near}'?" if near else "")
    if kind in ("string_too_short", "too_short"):
        return _at(tree, keys, "must not be empty")
    if kind == "string_pattern_mismatch":
        return _at(tree, keys, f"{_describe(found)} is not of the form {_form(keys)}")
    return _at(tree, keys, error["msg"])            # Quantity's own errors, and any kind added to pydantic later


def _form(keys: Keys) -> str:
    """What a pattern asks for, in words; the example of the key, or the pattern itself."""
    metadata = _metadata(keys)
    return str(metadata.get("form") or metadata.get("pattern"))


def _unknown_key(tree: Node, keys: Keys) -> Problem:
    if keys[-1] == "<<":
        return _at(tree, keys, "merge keys belong to YAML 1.1", at_key=True, fix="write the keys out")
    known = [name for name, _ in keys_of(_section_at(keys[:-1]))]
    return _at(tree, keys, "unknown key", at_key=True, fix=did_you_mean(str(keys[-1]), known, noun="the keys here are"))


def _describe(node: Node) -> str:
    """The value as the user wrote it, short."""
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list"
    if node.value is None:
        return "nothing"
    return f"'{clip(node.plain if node.plain is not None else str(node.value))}'"


def _type_fix(kind: str, found: Node, keys: Keys) -> str:
    scalar = not isinstance(found.value, (dict, list)) and found.value is not None
    if kind == "string_type" and scalar and found.plain is not None:
        return f"quote it: '{clip(found.plain)}'"
    if kind == "tuple_type" and scalar:
        return f"write a list: [{clip(str(found.value))}]"
    if found.value is None:
        return "give it a value, or remove the key"
    return f"write here: {_meaning(keys)}" if _names_a_field(keys) else ""


def _at(tree: Node, keys: Keys, what: str, *, fix: str = "", at_key: bool = False) -> Problem:
    """Place a problem. A value that is a collection is marked at its key, so the caret stands under a word."""
    node = tree.find(keys, at_key=at_key or isinstance(tree.find(keys).value, (dict, list)))
    return Problem(node.line, node.column, what, length=node.length, keys=keys, fix=fix)


def _yaml_problem(error: YamlError) -> Problem:
    return Problem(error.line, error.column, printable(error.what), length=error.length, fix=error.fix)


# --- what types cannot say -------------------------------------------------------------------------------------------------

def _cross_checks(tree: Node) -> list[Problem]:
    problems = list(_check_section(tree, tree, Deployfile, ()))
    output = tree.find(("output",))
    if output is not tree and isinstance(output.value, str) and not _is_inside(output.value):
        problems.append(_at(tree, ("output",), f"{_describe(output)} is not a folder inside the project",
                            fix="`tc clean` removes this folder: write a relative path such as 'build'"))
    return problems


def _is_inside(path: str) -> bool:
    parts = path.replace("\\", "/").split("/")
    return not path.startswith("/") and ".." not in parts and any(p not in ("", ".") for p in parts) and parts[0] != ".tc"


def _check_section(tree: Node, node: Node, kind: type[Section], keys: Keys) -> Iterator[Problem]:
    """Not-yet keys, exclusive keys, names and references of one section, and of all sections below it."""
    if not isinstance(node.value, dict):
        return
    yield from _check_one_of(tree, node, kind, keys)
    metadata = {f.name: f.metadata for f in fields(cast(Any, kind))}
    for name, annotation in keys_of(kind):
        if name not in node.value:
            continue
        value = node.value[name][1]
        here = (*keys, name)
        not_yet = metadata[name].get("not_yet")
        if isinstance(not_yet, str) and not_yet and value.value is not None:
            yield _not_yet(tree, here, not_yet, at_key=True)
            continue
        yield from _check_value(tree, value, annotation, metadata[name], here)


def _check_value(
    tree: Node, node: Node, annotation: Any, metadata: Mapping[str, Any], keys: Keys,
) -> Iterator[Problem]:
    annotation = strip_optional(annotation)
    if is_dataclass(annotation):
        yield from _check_section(tree, node, cast(type[Section], annotation), keys)
    elif isinstance(node.value, list):
        for n, item in enumerate(node.value):
            inner = get_args(annotation)[0] if get_args(annotation) else str
            yield from _check_value(tree, item, inner, metadata, (*keys, n))
    elif isinstance(node.value, dict) and get_origin(annotation) is Mapping:
        for name, (_, item) in node.value.items():
            pattern = metadata.get("names")
            if pattern and not re.fullmatch(pattern, name):
                yield _at(tree, (*keys, name), f"'{clip(name)}' cannot be a name here", at_key=True,
                          fix="use letters, digits, '_' and '-', starting with a letter or digit")
            yield from _check_value(tree, item, get_args(annotation)[1], {}, (*keys, name))
    elif isinstance(node.value, str):
        yield from _check_text(tree, node.value, metadata, keys)


def _check_text(tree: Node, text: str, metadata: Mapping[str, Any], keys: Keys) -> Iterator[Problem]:
    not_yet = metadata.get("not_yet")
    if isinstance(not_yet, Mapping) and text in not_yet:
        yield _not_yet(tree, keys, not_yet[text])
    if (refers := metadata.get("refers")) is not None:
        names = _declared(tree, refers)
        if text not in names:
            yield _at(tree, keys, f"no {refers[:-1]} '{clip(text)}'",
                      fix=did_you_mean(text, names, noun=f"the {refers} declared are"))


def _declared(tree: Node, section: str) -> list[str]:
    """The names the file declares under `section`; the default target where it declares none."""
    if section in tree.value:
        value = tree.value[section][1].value
        return list(value) if isinstance(value, dict) else []
    return ["x86"] if section == "targets" else []


def _check_one_of(tree: Node, node: Node, kind: type[Section], keys: Keys) -> Iterator[Problem]:
    if not kind.one_of:
        return
    there = [k for k in kind.one_of if k in node.value and node.value[k][1].value is not None]
    if len(there) > 1:
        what = f"'{there[1]}' and '{there[0]}' exclude each other"
        yield _at(tree, (*keys, there[1]), what, at_key=True, fix="keep one of the two")
    if not there and set(node.value) <= set(dict(keys_of(kind))):       # else a misspelt key is reported
        yield _at(tree, keys, f"needs one of the keys {', '.join(kind.one_of)}", at_key=True)


def _not_yet(tree: Node, keys: Keys, capability: str, *, at_key: bool = False) -> Problem:
    return _at(tree, keys, f"not yet: {capability}", at_key=at_key, fix="this version cannot do it; remove it here")


def _section_at(keys: Keys) -> type[Section]:
    """The class of the section at that path."""
    return cast(type[Section], _annotation_at(keys)[0])


def _meaning(keys: Keys) -> str:
    """What to write for a key: its description; of an enumeration the values that can be used today, too."""
    annotation, metadata = _annotation_at(keys)
    offered = [str(v) for v in get_args(annotation) if v not in (metadata["not_yet"] or ())]
    if get_origin(annotation) is not Literal or len(offered) < 2:
        return str(metadata["description"])
    return f"{metadata['description'].partition(' (not yet')[0]}: {', '.join(offered[:-1])} or {offered[-1]}"


def _names_a_field(keys: Keys) -> bool:
    """Whether a key of a section is meant, and no element or name below one."""
    return bool(keys) and is_dataclass(section := _section_at(keys[:-1])) and keys[-1] in dict(keys_of(section))


def _metadata(keys: Keys) -> Mapping[str, Any]:
    return _annotation_at(keys)[1]


def _annotation_at(keys: Keys) -> tuple[Any, Mapping[str, Any]]:
    annotation: Any = Deployfile
    metadata: Mapping[str, Any] = {}
    for step in keys:
        annotation = strip_optional(annotation)
        if is_dataclass(annotation):
            metadata = next(f.metadata for f in fields(annotation) if f.name == step)
            annotation = dict(keys_of(annotation))[str(step)]
        else:
            annotation = get_args(annotation)[1 if get_origin(annotation) is Mapping else 0]
    return strip_optional(annotation), metadata
