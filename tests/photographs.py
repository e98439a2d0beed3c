"""A folder of small pictures as people have them: sizes, formats, orientation tags, transparency."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS: Mapping[str, tuple[int, int, int]] = {"blue": (30, 60, 200), "green": (40, 180, 60), "red": (210, 40, 40)}
"""The classes."""
_FORMATS = ("jpg", "jpg", "jpg", "png", "webp")
_ORIENTATION = 0x0112


def picture(colour: tuple[int, int, int], drawn: random.Random, *, low: int = 40, high: int = 200) -> Image.Image:
    """Stripes in a colour, on another, with noise; both sides between ``low`` and ``high`` pixels."""
    height, width = drawn.randint(low, high), drawn.randint(low, high)
    noise = np.random.default_rng(drawn.getrandbits(32)).integers(0, 50, (height, width, 3))
    stripes = (np.arange(width) // drawn.randint(5, 20) % 2)[None, :, None]
    return Image.fromarray((noise + stripes * np.array(colour) * 0.8).astype(np.uint8))


def write_photographs(folder: Path, counts: Mapping[str, int]) -> None:
    """``folder/<split>/<class>/<number>.jpg`` and so on: of each split so many, dealt to the classes in turn."""
    drawn = random.Random(0)
    for split, count in counts.items():
        for number in range(count):
            name, colour = list(COLOURS.items())[number % len(COLOURS)]
            path = folder / split / name / f"{number:05}.{_FORMATS[number % len(_FORMATS)]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image, exif = picture(colour, drawn), Image.Exif()
            if path.suffix == ".jpg":
                exif[_ORIENTATION] = drawn.randint(1, 8)
            elif path.suffix == ".png":
                image.putalpha(drawn.randint(100, 255))
            image.save(path, exif=exif)
