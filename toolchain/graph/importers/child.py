"""Importing in a child process with limits: whatever a model does to the importer, it does not do to the build.

The parent starts `python -m toolchain.graph.importers.child`, writes the request to its standard input and reads one JSON
reply; the graph itself comes back as a saved folder. In the child the operating system bounds memory, processor time and
the size of written files. An error of ours comes back as what it was; a child that is killed, crashes or hangs becomes an
ImportModelError too.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import toolchain
from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.limits import DEFAULT, GB, Limits

_ROOT = Path(toolchain.__file__).parent.parent
_FAILED = 3         # exit code of a child that reports an ImportModelError
REPLY_BYTES = 64 << 20
METADATA_FILE = "metadata.json"     # beside the graph, when the model says something of itself


def import_in_child(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int], out: Path,
    supported: Collection[str] | None = None, limits: Limits = DEFAULT,
) -> dict[str, Any]:
    """Import the model at `path` and save the graph below `out` (an existing folder), in a process of its own.

    The model's metadata, where it has any, is saved beside the graph as METADATA_FILE: {name: text}.

    Gives the facts a build keeps: {"inputs", "outputs": {name: type text}, "nodes", "params_bytes", "opset"}.
    Raises ImportModelError: everything `import_onnx` raises, and a child that exceeded a limit or died.
    """
    request = {
        "path": os.fspath(path.absolute()), "out": os.fspath(out.absolute()), "limits": limits.to_json(),
        "shapes": {name: list(shape) for name, shape in shapes.items()}, "dims": dict(dims),
        "supported": None if supported is None else sorted(supported),
    }
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "toolchain.graph.importers.child"], input=json.dumps(request).encode(),
            capture_output=True, timeout=limits.wall_s, env=_environment(), cwd=out, check=False)
    except subprocess.TimeoutExpired:
        raise ImportModelError(f"importing took longer than {limits.wall_s:g} s (limit wall_s)", where=str(path),
                               fix="raise the limit if the model is trusted") from None
    return _result(done, path, limits, time.monotonic() - started)


def _environment() -> dict[str, str]:
    """The parent's, with one thread per library (each thread reserves address space) and this package importable."""
    paths = [os.fspath(_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
            "PYTHONSAFEPATH": "1"}


def _result(done: subprocess.CompletedProcess[bytes], path: Path, limits: Limits, seconds: float) -> dict[str, Any]:
    try:
        reply = json.loads(done.stdout) if len(done.stdout) <= REPLY_BYTES else {}
    except ValueError:
        reply = {}
    if done.returncode == 0 and "meta" in reply:
        return dict(reply["meta"])
    if done.returncode == _FAILED and "what" in reply:
        raise ImportModelError(reply["what"], where=reply["where"] or str(path), fix=reply["fix"])
    raise ImportModelError(f"the import died: {_cause(done, limits, seconds)}", where=str(path),
                           fix="if the model is trusted, raise `limits` in the deployfile; otherwise leave it alone")


def _cause(done: subprocess.CompletedProcess[bytes], limits: Limits, seconds: float) -> str:
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""]
    if done.returncode == -signal.SIGXCPU:
        return f"more than {limits.cpu_s} s of processor time (limit cpu_s)"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name if -done.returncode in set(signal.Signals) else str(-done.returncode)
        return f"killed by {name} after {seconds:.1f} s; the usual reason is memory (limit memory_bytes). {last[0]}".strip()
    return f"exit code {done.returncode}: {last[0]}"


def main() -> int:
    """The child: a request on standard input, a reply on standard output."""
    request = json.load(sys.stdin)
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                       # what libraries print must not mix with the reply
    with reply:
        code, answer = _answer(request)
        json.dump(answer, reply)
    return code


def _answer(request: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    limits = Limits(**{f.name: request["limits"][f.name] for f in fields(Limits)})
    path, out = Path(request["path"]), Path(request["out"])
    memory_bytes = restrict(limits, path)
    try:
        meta = _import(request, path, out, limits)
    except ImportModelError as e:
        return _refuse(e.what, e.where, e.fix)
    except MemoryError:
        return _refuse(f"importing needs more than {memory_bytes >> 20} MB of memory (limit memory_bytes)", str(path),
                       "raise the limit if the model is trusted")
    except RecursionError:
        return _refuse("is nested too deeply", str(path), "")
    except Exception as e:      # a model must not be able to make the importer look broken, nor to hide that it is
        return _refuse(f"could not be imported: {type(e).__name__}: {e}", str(path),
                       "if onnx.checker accepts the model, this is a bug: please report it with the model")
    return 0, {"meta": meta}


def _refuse(what: str, where: str, fix: str) -> tuple[int, dict[str, Any]]:
    return _FAILED, {"what": what[:20_000], "where": where, "fix": fix}


def restrict(limits: Limits, path: Path) -> int:
    """Let the operating system hold this process to the limits; gives the bound on memory in bytes."""
    size_bytes = _data_bytes(path)
    memory_bytes = limits.memory_bytes or 4 * size_bytes + limits.folded_bytes + 2 * GB
    file_bytes = 2 * size_bytes + limits.folded_bytes + (64 << 20)
    for what, bound in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, file_bytes),
                        (resource.RLIMIT_CPU, limits.cpu_s), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    return memory_bytes


def _data_bytes(path: Path) -> int:
    """The size of the plain files in the model's folder: an upper bound of the model and its external data."""
    total = 0
    with suppress(OSError):                             # if it cannot be read, the importer says what is wrong
        for entry in os.scandir(path.parent):
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
        total = max(total, path.stat().st_size)         # the model itself may be named through a link
    return total


def _import(request: Mapping[str, Any], path: Path, out: Path, limits: Limits) -> dict[str, Any]:
    # Imported here, under the limits: loading onnx is most of the child's start, and the parent never needs it.
    from toolchain.graph.importers.onnx import import_model, metadata_of, read_model
    from toolchain.graph.protos import OPSET
    from toolchain.graph.serialize import save

    shapes = {name: tuple(shape) for name, shape in request["shapes"].items()}
    model = read_model(path, limits)
    graph = import_model(model, path.parent, shapes, request["dims"], request["supported"], limits, where=str(path))
    save(graph, out)
    if metadata := metadata_of(model):
        (out / METADATA_FILE).write_text(json.dumps(metadata, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    return {
        "inputs": {name: str(graph.types[name]) for name in graph.inputs},
        "outputs": {name: str(graph.types[name]) for name in graph.own_outputs},
        "nodes": len(graph.nodes),
        "params_bytes": sum(a.nbytes for a in graph.params.values()),
        "opset": OPSET,
    }


if __name__ == "__main__":
    sys.exit(main())
