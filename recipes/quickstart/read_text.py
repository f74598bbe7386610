"""Read a line of text from an image with the deployed network: python read_text.py ARTIFACT [IMAGE]

The artifact runs through `toolchain.load`. Preparing the image and decoding the network's answer follow PP-OCR:
resize to height 48 keeping the aspect, scale to -1 .. 1 in BGR order, pad with zeros to width 320 (text on the left); then
greedy CTC: the best class of each column, repeats and blanks dropped. The list of characters is in the ONNX file's
metadata, which the artifact's manifest repeats.
"""

from __future__ import annotations

import argparse
import json
import struct
import zlib
from pathlib import Path

import numpy as np

import toolchain

HEIGHT, WIDTH = 48, 320
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}         # PNG colour type -> samples per pixel


def read_png(path: Path) -> np.ndarray:
    """The pixels of a PNG as uint8 (H, W, 3), RGB. Reads 8-bit grey and RGB, alpha is dropped; no interlacing.

    Source: PNG specification (W3C), sections 5 (chunks) and 9 (filters).
    """
    data = path.read_bytes()
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is not a PNG file")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if depth != 8 or colour not in CHANNELS or interlace:
        raise ValueError(f"{path}: only 8-bit grey or RGB without interlacing can be read (Pillow converts others)")
    n, packed, at = CHANNELS[colour], b"", 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        packed += data[at + 8:at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * n)
    pixels = _unfilter(lines, n).reshape(height, width, n)
    return np.repeat(pixels[:, :, :1], 3, axis=2) if n < 3 else pixels[:, :, :3]


def _unfilter(lines: np.ndarray, n: int) -> np.ndarray:
    """Undo the per-line filters: each byte is stored as its difference from a guess made of its neighbours.

    a: left, b: above, c: above left.
    """
    out = np.zeros((lines.shape[0] + 1, lines.shape[1] - 1 + n), np.int64)      # a border of zeros above and to the left
    for y, (kind, *line) in enumerate(lines.tolist(), 1):
        for x, value in enumerate(line, n):
            a, b, c = int(out[y, x - n]), int(out[y - 1, x]), int(out[y - 1, x - n])
            guess = (0, a, b, (a + b) // 2, _paeth(a, b, c))[kind]
            out[y, x] = (value + guess) & 255
    return out[1:, n:].astype(np.uint8)


def _paeth(a: int, b: int, c: int) -> int:
    """The neighbour closest to a + b - c."""
    return min((a, b, c), key=lambda neighbour: abs(a + b - c - neighbour))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, pixel centres at half integers (as OpenCV's INTER_LINEAR); float32 (height, width, C)."""
    rows, cols = _taps(image.shape[0], height), _taps(image.shape[1], width)
    image = image.astype(np.float32)
    low, high, weight = rows
    image = image[low] * (1 - weight)[:, None, None] + image[high] * weight[:, None, None]
    low, high, weight = cols
    return image[:, low] * (1 - weight)[None, :, None] + image[:, high] * weight[None, :, None]


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source indices of each new pixel and the weight of the second."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def preprocess(rgb: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) as the network's input (1, 3, 48, 320)."""
    width = min(WIDTH, -(-HEIGHT * rgb.shape[1] // rgb.shape[0]))
    bgr = resize(rgb[:, :, ::-1], HEIGHT, width)
    x = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    x[0, :, :, :width] = (bgr / np.float32(255) - np.float32(0.5)).transpose(2, 0, 1) / np.float32(0.5)
    return x


def characters(artifact: Path) -> list[str]:
    """The classes of the network: blank, the list in the model's metadata (one a line), space."""
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    return ["", *manifest["metadata"]["character"].split("\n"), " "]


def decode(probabilities: np.ndarray, classes: list[str]) -> tuple[str, float]:
    """Greedy CTC on (T, classes): the text, and the mean probability of its characters."""
    best = probabilities.argmax(axis=1)
    first = np.concatenate(([True], best[1:] != best[:-1]))      # a repeated class is one character
    keep = first & (best != 0)
    text = "".join(classes[i] for i in best[keep])
    return text, float(probabilities.max(axis=1)[keep].mean()) if keep.any() else 0.0


def main(arguments: list[str] | None = None) -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Read a line of text from an image with a deployed network.")
    parser.add_argument("artifact", type=Path, nargs="?", default=here / "build" / "reader@x86")
    parser.add_argument("image", type=Path, nargs="?", default=here / "line.png")
    options = parser.parse_args(arguments)
    module = toolchain.load(options.artifact)
    (output,) = module.run({"x": preprocess(read_png(options.image))}).values()
    text, confidence = decode(output[0], characters(options.artifact))
    print(f"{text}    (confidence {confidence:.3f})")


if __name__ == "__main__":
    main()
