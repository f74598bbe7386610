"""Files out of wheels and models out of recipe functions, offline: the package index is a folder."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from toolchain.core.errors import DeployfileError, DeviceError, ImportModelError, MissingToolError, TaskError
from toolchain.tasks.fetch import extract_member, fetch_wheel_file, run_recipe

MODEL = b"not really a model" * 100


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with one small wheel, which pip uses in place of an index; its SHA-256."""
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("tiny_model/net.onnx", MODEL)
        z.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        z.writestr("tiny_model-1.0.dist-info/WHEEL",
                   "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_file_of_a_pinned_wheel(index: str, tmp_path: Path) -> None:
    fetch_wheel_file("tiny-model", "1.0", index.upper(), "tiny_model/net.onnx", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == MODEL


def test_another_wheel_than_the_pinned_one_is_refused(index: str, tmp_path: Path) -> None:
    with pytest.raises(ImportModelError, match=f"has the SHA-256 {index}, the deployfile pins 0000") as raised:
        fetch_wheel_file("tiny-model", "1.0", "0" * 64, "tiny_model/net.onnx", tmp_path / "model.onnx")
    assert raised.value.exit_code == 2
    assert not (tmp_path / "model.onnx").exists()


def test_a_version_the_index_does_not_have(index: str, tmp_path: Path) -> None:
    with pytest.raises(ImportModelError, match=r"tiny-model==2\.0: pip cannot download it: .*tiny-model==2\.0"):
        fetch_wheel_file("tiny-model", "2.0", index, "tiny_model/net.onnx", tmp_path / "model.onnx")


def test_a_file_the_wheel_does_not_have(index: str, tmp_path: Path) -> None:
    with pytest.raises(ImportModelError, match=r"its models are: tiny_model/net\.onnx"):
        fetch_wheel_file("tiny-model", "1.0", index, "tiny_model/other.onnx", tmp_path / "model.onnx")


def test_no_network_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")      # the discard port: refuses at once
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DeviceError, match="the package index cannot be reached") as raised:
        fetch_wheel_file("tiny-model", "1.0", "0" * 64, "net.onnx", tmp_path / "model.onnx")
    assert raised.value.exit_code == 5


def test_a_download_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 900)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DeviceError, match="did not finish within 900 s"):
        fetch_wheel_file("tiny-model", "1.0", "0" * 64, "net.onnx", tmp_path / "model.onnx")


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="pip is missing") as raised:
        fetch_wheel_file("tiny-model", "1.0", "0" * 64, "net.onnx", tmp_path / "model.onnx")
    assert raised.value.fix == "python -m ensurepip"


@pytest.mark.parametrize("package", ["--index-url=x", "a @ https://x", "a\nb", "a;b"])
def test_a_package_name_cannot_smuggle_options(package: str, tmp_path: Path) -> None:
    with pytest.raises(DeployfileError):
        fetch_wheel_file(package, "1.0", "0" * 64, "net.onnx", tmp_path / "model.onnx")


def archive(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, data)
    return path


def test_a_members_name_is_never_a_path_of_ours(tmp_path: Path) -> None:
    evil = archive(tmp_path / "evil.zip", "../../escaped.onnx", b"x")
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    extract_member(evil, "../../escaped.onnx", inside / "model.onnx")
    assert (inside / "model.onnx").read_bytes() == b"x"
    assert not (tmp_path / "escaped.onnx").exists()


def test_a_member_that_declares_too_much(tmp_path: Path) -> None:
    big = archive(tmp_path / "big.zip", "m.onnx", bytes(10_000))
    with pytest.raises(ImportModelError, match="declares 10,000 bytes; the limit is 9,999"):
        extract_member(big, "m.onnx", tmp_path / "out", max_bytes=9_999)
    extract_member(big, "m.onnx", tmp_path / "out", max_bytes=10_000)


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.zip", "m.onnx", bytes(range(256)) * 40)
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    with pytest.raises(ImportModelError, match="not a sound zip archive"):
        extract_member(path, "m.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.write_bytes(b"PK nothing")
    with pytest.raises(ImportModelError, match="not a sound zip archive"):
        extract_member(path, "m.onnx", tmp_path / "out")


def recipe(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "models.py"
    file.write_text(text)
    return file


def test_a_recipe_function_writes_the_model(tmp_path: Path) -> None:
    file = recipe(tmp_path, "def net(out):\n    out.write_bytes(b'model')\n")
    run_recipe(file, "net", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"model"


@pytest.mark.parametrize(("text", "function", "error", "words"), [
    ("x = 1\n", "net", DeployfileError, "models.py has no public function 'net'"),
    ("def _net(out): ...\n", "_net", DeployfileError, "no public function"),
    ("def net(out): ...\n", "net", TaskError, "the recipe wrote no model.onnx"),
    ("def net(out): 1 / 0\n", "net", TaskError, "the recipe failed: ZeroDivisionError"),
    ("import no_such_module\n", "net", TaskError, "the recipe cannot be loaded: ModuleNotFoundError"),
    ("def net(out) 3\n", "net", TaskError, "the recipe cannot be loaded: SyntaxError"),
])
def test_what_a_recipe_can_do_wrong(text: str, function: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        run_recipe(recipe(tmp_path, text), function, tmp_path / "model.onnx")


def test_a_recipe_cannot_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("x = 1\n")
    with pytest.raises(TaskError, match="No module named 'neighbour'"):
        run_recipe(recipe(tmp_path, "import neighbour\n"), "net", tmp_path / "model.onnx")


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(DeployfileError, match="no such recipe file"):
        run_recipe(tmp_path / "none.py", "net", tmp_path / "model.onnx")
