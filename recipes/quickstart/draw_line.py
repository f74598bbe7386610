"""Draw line.png, the image this recipe reads (needs Pillow; the drawn file is part of the recipe)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TEXT = "tc build 2026"


def draw(text: str = TEXT, size: int = 32) -> Image.Image:
    """Dark text on a light background, in the font that Pillow carries."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (right - left + 24, bottom - top + 16), (244, 244, 238))
    ImageDraw.Draw(image).text((12 - left, 8 - top), text, font=font, fill=(24, 28, 40))
    return image


if __name__ == "__main__":
    draw().save(Path(__file__).parent / "line.png", optimize=True)
