"""The parts of read_text.py: reading PNGs, preparing an image, decoding. (The network itself is the build's business.)"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from toolchain.tasks.fetch import _load

FOLDER = Path(__file__).parents[2] / "recipes" / "quickstart"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    return _load(FOLDER / "read_text.py")


def png(colour: int, pixels: np.ndarray, filters: list[int], depth: int = 8, interlace: int = 0) -> bytes:
    """A PNG of those pixels, line i stored with filter filters[i]: the encoder the reader is checked with."""
    height, width, n = pixels.shape
    padded = np.zeros((height + 1, (width + 1) * n), np.int64)
    padded[1:, n:] = pixels.reshape(height, -1)
    lines = []
    for y, kind in enumerate(filters, 1):
        a, b, c = padded[y, :-n], padded[y - 1, n:], padded[y - 1, :-n]
        p = a + b - c
        nearest = np.stack([abs(p - a), abs(p - b), abs(p - c)]).argmin(0)
        guess = [np.zeros_like(a), a, b, (a + b) // 2, np.choose(nearest, [a, b, c])][kind]
        lines.append(bytes([kind]) + ((padded[y, n:] - guess) % 256).astype(np.uint8).tobytes())
    body = zlib.compress(b"".join(lines))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    chunks = [(b"IHDR", header), (b"tEXt", b"IDAT"), (b"IDAT", body[:7]), (b"IDAT", body[7:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_every_kind_and_filter(colour: int, channels: int, reader: ModuleType, tmp_path: Path) -> None:
    pixels = np.random.default_rng(colour).integers(0, 256, (10, 7, channels)).astype(np.uint8)
    file = tmp_path / "x.png"
    file.write_bytes(png(colour, pixels, [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]))
    expected = np.repeat(pixels[:, :, :1], 3, 2) if channels < 3 else pixels[:, :, :3]
    np.testing.assert_array_equal(reader.read_png(file), expected)


def test_png_reads_what_pillow_reads(reader: ModuleType) -> None:
    image = pytest.importorskip("PIL.Image")
    with image.open(FOLDER / "line.png") as line:
        np.testing.assert_array_equal(reader.read_png(FOLDER / "line.png"), np.asarray(line.convert("RGB")))


def test_other_files_are_refused(reader: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="not a PNG"):
        reader.read_png(file)
    file.write_bytes(png(2, np.zeros((1, 1, 3), np.uint8), [0], depth=16))
    with pytest.raises(ValueError, match="only 8-bit"):
        reader.read_png(file)
    file.write_bytes(png(2, np.zeros((1, 1, 3), np.uint8), [0], interlace=1))
    with pytest.raises(ValueError, match="only 8-bit"):
        reader.read_png(file)


def test_resizing_is_bilinear_on_pixel_centres(reader: ModuleType) -> None:
    row = np.array([[[0.0], [4.0]]])
    assert reader.resize(row, 1, 4).ravel().tolist() == [0.0, 1.0, 3.0, 4.0]
    np.testing.assert_allclose(reader.resize(np.full((5, 9, 3), 7), 48, 100), np.full((48, 100, 3), 7.0), rtol=1e-6)
    assert reader.resize(row, 1, 2).ravel().tolist() == [0.0, 4.0]


def test_preparing_an_image(reader: ModuleType) -> None:
    rgb = np.zeros((24, 40, 3), np.uint8)
    rgb[:, :, 0] = 255                                      # red
    x = reader.preprocess(rgb)
    assert x.shape == (1, 3, 48, 320) and x.dtype == np.float32
    assert [float(x[0, c, 10, 10]) for c in range(3)] == [-1.0, -1.0, 1.0]      # blue, green, red
    assert np.abs(x[0, :, :, :80]).min() == 1.0 and not x[0, :, :, 80:].any()
    assert not (reader.preprocess(np.zeros((10, 500, 3), np.uint8)) == 0).any()      # too long a line is squeezed


def test_decoding_drops_repeats_and_blanks(reader: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"metadata": {"character": "a\nb\nc"}}))
    classes = reader.characters(tmp_path)
    assert classes == ["", "a", "b", "c", " "]
    columns = [0, 1, 1, 0, 1, 4, 4, 2, 3, 3, 0]
    probabilities = np.full((len(columns), 5), 0.05, np.float32)
    probabilities[np.arange(len(columns)), columns] = 0.8
    text, confidence = reader.decode(probabilities, classes)
    assert text == "aa bc" and confidence == pytest.approx(0.8)
    assert reader.decode(np.eye(5, dtype=np.float32)[[0, 0]], classes) == ("", 0.0)


def test_the_image_is_what_the_script_draws() -> None:
    """Same size and words; Pillow's versions may draw edges a little differently."""
    pytest.importorskip("PIL")
    drawn = _load(FOLDER / "draw_line.py").draw()
    line = _load(FOLDER / "read_text.py").read_png(FOLDER / "line.png")
    assert drawn.size == (line.shape[1], line.shape[0])
    assert np.abs(np.asarray(drawn).astype(int) - line).mean() < 2
