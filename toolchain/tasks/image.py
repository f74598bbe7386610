"""An image file as the values of an input: decode, bring to the input's size, normalise, order the dimensions.

PNG files of 8 bits are read here, so that the common case needs no library; Pillow, where installed, reads everything else.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import MissingToolError, UsageError

MAX_PIXELS = 64 << 20
MAX_FILE_BYTES = 256 << 20
_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}         # PNG colour type -> samples per pixel


def image_input(path: Path, options: Mapping[str, Any], shape: Sequence[int], dtype: str) -> np.ndarray:
    """The image as an array of that shape: (N, C, H, W), (C, H, W) or (H, W), channels last where that is what fits.

    options: `Image` of the deployfile: order, fit, scale, mean, std. (pixel * scale - mean) / std, then what `fit: pad` adds
    is zero. Raises UsageError: not an image, or a shape that no image has; MissingToolError: a format that needs Pillow.
    """
    channels, height, width, last = _dimensions(shape, path)
    pixels = _in_order(read_pixels(path), options["order"], channels, path)
    placed = _fitted(pixels.astype(np.float32), options["fit"], height, width)
    array = placed * np.float32(options["scale"])
    array = (array - _per_channel(options["mean"], channels, 0.0, path)) / _per_channel(options["std"], channels, 1.0, path)
    whole = np.zeros((height, width, channels), np.float32)
    whole[:array.shape[0], :array.shape[1]] = array
    whole = whole if last else whole.transpose(2, 0, 1)
    if len(shape) == 2:
        whole = whole[0]
    if to_numpy(dtype).kind in "iu":
        whole = np.rint(whole)
    return np.ascontiguousarray(np.broadcast_to(whole, shape).astype(to_numpy(dtype)))


def _dimensions(shape: Sequence[int], path: Path) -> tuple[int, int, int, bool]:
    """(channels, height, width, channels are last)."""
    match list(shape):
        case [h, w]:
            return 1, h, w, False
        case [*_, c, h, w] if len(shape) in (3, 4) and c in (1, 3):
            return c, h, w, False
        case [*_, h, w, c] if len(shape) in (3, 4) and c in (1, 3):
            return c, h, w, True
    raise UsageError(f"an image does not fit the shape {list(shape)}", where=str(path),
                     fix="images fit (N, C, H, W), (C, H, W), (N, H, W, C), (H, W, C) with 1 or 3 channels, and (H, W)")


def _per_channel(values: Sequence[float], channels: int, default: float, path: Path) -> np.ndarray:
    if len(values) not in (0, 1, channels):
        raise UsageError(f"{len(values)} values of mean or std for {channels} channels", where=str(path),
                         fix="give one value, or one per channel")
    return np.asarray(values or [default], np.float32)


def _in_order(rgb: np.ndarray, order: str, channels: int, path: Path) -> np.ndarray:
    """(H, W, 3) -> (H, W, channels). Grey by the luma weights of ITU-R BT.601."""
    if (order == "GRAY") != (channels == 1):
        raise UsageError(f"order {order} for an input with {channels} channels", where=str(path),
                         fix="GRAY is for one channel, RGB and BGR are for three")
    if order == "GRAY":
        return np.asarray(rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    return rgb if order == "RGB" else rgb[:, :, ::-1]


def _fitted(image: np.ndarray, fit: str, height: int, width: int) -> np.ndarray:
    """The image scaled to the input's size; `pad`: not larger than it, aspect kept; `crop`: covering it, then its centre."""
    rows, columns = image.shape[:2]
    if fit == "stretch":
        return resize(image, height, width)
    if fit == "pad":
        scale = min(height / rows, width / columns)
        return resize(image, min(height, _ceil(rows * scale)), min(width, _ceil(columns * scale)))
    scale = max(height / rows, width / columns)
    scaled = resize(image, max(height, round(rows * scale)), max(width, round(columns * scale)))
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    return scaled[top:top + height, left:left + width]


def _ceil(value: float) -> int:
    """Up to the next whole number, but not for what rounding added."""
    return max(1, math.ceil(value - 1e-9))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, pixel centres at half integers (as OpenCV's INTER_LINEAR): (H, W, C) -> (height, width, C)."""
    low, high, weight = _taps(image.shape[0], height)
    image = image[low] * (1 - weight)[:, None, None] + image[high] * weight[:, None, None]
    low, high, weight = _taps(image.shape[1], width)
    return image[:, low] * (1 - weight)[None, :, None] + image[:, high] * weight[None, :, None]


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source positions of each new pixel, and the weight of the second."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def read_pixels(path: Path) -> np.ndarray:
    """The pixels as uint8 (H, W, 3), RGB. Raises UsageError and MissingToolError."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UsageError(f"an image of more than {MAX_FILE_BYTES >> 20} MiB", where=str(path))
    data = path.read_bytes()
    try:
        if (pixels := _read_png(data)) is not None:
            return pixels
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        raise UsageError(f"a damaged PNG file: {error}", where=str(path)) from None
    try:
        from PIL import Image  # optional
    except ImportError:
        raise MissingToolError("reading this kind of image needs Pillow", where=str(path),
                               fix="pip install pillow, or convert it to an 8-bit PNG without interlacing") from None
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UsageError(f"an image of {opened.width} x {opened.height} pixels", where=str(path))
            return np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise UsageError(f"not an image: {error}", where=str(path)) from None


def _read_png(data: bytes) -> np.ndarray | None:
    """An 8-bit grey or RGB PNG, alpha dropped; None for other kinds of image. PNG specification (W3C), sections 5 and 9."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if depth != 8 or colour not in _SAMPLES or interlace:
        return None
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels")
    n, packed, at = _SAMPLES[colour], [], 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IDAT":
            packed.append(data[at + 8:at + 8 + size])
        at += 12 + size
    wanted = height * (1 + width * n)
    raw = zlib.decompressobj().decompress(b"".join(packed), wanted)
    if len(raw) != wanted:
        raise ValueError("it ends early")
    lines = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * n)
    pixels = _unfiltered(lines, n).reshape(height, width, n)
    return np.repeat(pixels[:, :, :1], 3, axis=2) if n < 3 else np.ascontiguousarray(pixels[:, :, :3])


def _unfiltered(lines: np.ndarray, n: int) -> np.ndarray:
    """Undo the per-line filters: each byte is stored as its difference from a guess made of its neighbours.

    Whole lines at once where the guess is the line above; pixel by pixel where it is the pixel to the left.
    """
    height, width = lines.shape[0], (lines.shape[1] - 1) // n
    out = np.zeros((height + 1, width + 1, n), np.int64)        # a border of zeros above and to the left
    for y in range(height):
        kind = int(lines[y, 0])
        coded = lines[y, 1:].reshape(width, n).astype(np.int64)
        line, above = out[y + 1], out[y]
        if kind in (0, 2):
            line[1:] = (coded + (above[1:] if kind else 0)) & 255
            continue
        if kind not in (1, 3, 4):
            raise ValueError(f"filter {kind}")
        for x in range(width):
            a, b, c = line[x], above[x + 1], above[x]
            guess = a if kind == 1 else (a + b) >> 1 if kind == 3 else _paeth(a, b, c)
            line[x + 1] = (coded[x] + guess) & 255
    return out[1:, 1:].astype(np.uint8)


def _paeth(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Per sample the neighbour closest to a + b - c; left before above before above-left."""
    p = a + b - c
    da, db, dc = abs(p - a), abs(p - b), abs(p - c)
    return np.where((da <= db) & (da <= dc), a, np.where(db <= dc, b, c))
