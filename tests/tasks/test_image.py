"""Images as inputs: decoding, fitting, normalising, ordering."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from toolchain.build.deployfile import Image
from toolchain.core.errors import UsageError
from toolchain.tasks.image import image_input, read_pixels, resize

pillow = pytest.importorskip("PIL.Image")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)


def options(**more: object) -> dict:
    return asdict(Image(file="x.png", **{"scale": 1.0, **more}))


@pytest.fixture
def png(tmp_path: Path) -> Path:
    pillow.fromarray(PIXELS).save(tmp_path / "x.png")
    return tmp_path / "x.png"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_pngs_read_as_pillow_reads_them(mode, tmp_path):
    """8-bit RGB, RGBA, L and LA by our reader; palettes and bits by Pillow."""
    smooth = np.add.outer(np.arange(31), np.arange(17)).astype(np.uint8)    # lines that every filter is chosen for
    image = pillow.fromarray(np.stack([smooth, smooth * 3, 255 - smooth], axis=2)).convert(mode)
    image.save(tmp_path / "x.png", optimize=True)
    np.testing.assert_array_equal(read_pixels(tmp_path / "x.png"), np.asarray(image.convert("RGB")))


def test_other_formats_are_read_by_pillow(tmp_path):
    pillow.fromarray(PIXELS).save(tmp_path / "x.bmp")
    np.testing.assert_array_equal(read_pixels(tmp_path / "x.bmp"), PIXELS)


@pytest.mark.parametrize("cut", [20, 60])
def test_damaged_pngs_are_refused(cut, png):
    png.write_bytes(png.read_bytes()[:cut])
    with pytest.raises(UsageError, match="a damaged PNG file"):
        read_pixels(png)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"text")
    with pytest.raises(UsageError, match="not an image"):
        read_pixels(tmp_path / "x.png")


@pytest.mark.parametrize(("shape", "expected"), [
    ((1, 3, 6, 4), PIXELS.transpose(2, 0, 1)[None]), ((3, 6, 4), PIXELS.transpose(2, 0, 1)),
    ((1, 6, 4, 3), PIXELS[None]), ((6, 4, 3), PIXELS), ((2, 3, 6, 4), np.stack([PIXELS.transpose(2, 0, 1)] * 2)),
])
def test_dimensions_are_put_where_the_input_has_them(shape, expected, png):
    np.testing.assert_array_equal(image_input(png, options(), shape, "float32"), expected)
    np.testing.assert_array_equal(image_input(png, options(), shape, "uint8"), expected)


def test_order_and_normalisation(png):
    normalised = options(order="BGR", scale=1 / 255, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    bgr = image_input(png, normalised, (3, 6, 4), "float32")
    expected = (PIXELS[:, :, ::-1] / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(bgr, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    grey = image_input(png, options(order="GRAY"), (1, 1, 6, 4), "float32")
    np.testing.assert_allclose(grey[0, 0], PIXELS @ [0.299, 0.587, 0.114], rtol=1e-5)
    assert image_input(png, options(order="GRAY"), (6, 4), "float32").shape == (6, 4)


def test_stretch_pad_and_crop(png):
    wide = (1, 3, 6, 12)
    stretched = image_input(png, options(fit="stretch"), wide, "float32")
    np.testing.assert_allclose(stretched[0], resize(PIXELS.astype(np.float32), 6, 12).transpose(2, 0, 1), rtol=1e-6)
    padded = image_input(png, options(fit="pad", mean=(9.0,)), wide, "float32")
    np.testing.assert_array_equal(padded[0, :, :, :4], PIXELS.transpose(2, 0, 1) - np.float32(9))
    assert not padded[0, :, :, 4:].any(), "what is added is zero after normalisation"
    cropped = image_input(png, options(fit="crop"), (1, 3, 4, 4), "float32")
    np.testing.assert_array_equal(cropped[0], PIXELS[1:5].transpose(2, 0, 1))


def test_resizing_keeps_a_constant_and_a_ramp():
    np.testing.assert_allclose(resize(np.full((5, 7, 1), 3, np.float32), 11, 3), 3, rtol=1e-6)
    ramp = np.arange(8, dtype=np.float32)[None, :, None]
    np.testing.assert_allclose(resize(ramp, 1, 16)[0, :, 0], np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7), rtol=1e-6)


@pytest.mark.parametrize(("more", "shape", "what"), [
    ({}, (1, 5, 6, 4), "an image does not fit the shape"),
    ({"order": "GRAY"}, (1, 3, 6, 4), "order GRAY for an input with 3 channels"),
    ({}, (1, 1, 6, 4), "order RGB for an input with 1 channels"),
    ({"mean": (1.0, 2.0)}, (1, 3, 6, 4), "2 values of mean or std for 3 channels"),
])
def test_what_does_not_fit_is_refused(more, shape, what, png):
    with pytest.raises(UsageError, match=what):
        image_input(png, options(**more), shape, "float32")
