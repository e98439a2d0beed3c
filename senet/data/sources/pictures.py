"""Files of images, decoded to RGB."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from senet.data.sources.index import Index

# Others are refused: Pillow hands EPS files to Ghostscript, which runs them as programs
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
OTHER_SUFFIXES = (".arw", ".avif", ".cr2", ".dng", ".eps", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".svg")
"""Of images in formats that are not read. Of raw photographs, TIFF files inside, Pillow would read the thumbnail."""

# What has another suffix, or none, is taken for an image: its content counts, and it is refused by name if it is none
NO_IMAGE_SUFFIXES = (
    ".cfg", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".mat", ".md", ".md5", ".npy", ".pkl", ".py",
    ".sha256", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml",
)  # fmt: skip
"""Of what lies beside images."""


class Unreadable(Exception):
    """A file that is no image, or a damaged one: names it and says why."""


def decode(index: Index, row: int) -> Image.Image:
    """An image of a split. Unreadable: it cannot be decoded."""
    try:
        return read_image(BytesIO(index.place(row).read()))
    except UnidentifiedImageError:
        raise Unreadable(f"{index.keys[row]} (no image)") from None
    except Exception as error:  # each decoder raises its own
        reason = " ".join(str(error).split())[:100]
        raise Unreadable(f"{index.keys[row]} ({reason or type(error).__name__})") from None


def read_image(file: Path | BinaryIO, *, max_pixels: int | None = None) -> Image.Image:
    """Read a file of ``IMAGE_FORMATS``, in any mode, as RGB: the first frame, without transparency; orientation tags
    are ignored.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: not an image; damaged; more than ``max_pixels``
            (checked before decoding) or 179 million pixels; 16-bit, 32-bit or float pixels of an unknown range. A
            malicious file may make its decoder raise other errors.
    """
    with Image.open(file, formats=IMAGE_FORMATS) as opened:
        picture: Image.Image = opened
        width, height = picture.size
        if max_pixels is not None and width * height > max_pixels:
            raise Image.DecompressionBombError(f"{width} x {height} pixels, {max_pixels:,} are taken at most")
        if picture.mode.startswith("I;16"):  # Pillow would clip all values above 255
            values = np.asarray(picture)
            if 0 < values.max() < 256:
                raise ValueError(f"its pixels have 16 bits, but none is above {values.max()}; store 8 bits")
            picture = Image.fromarray((values >> 8).astype(np.uint8))
        elif picture.mode in ("I", "F"):
            values = np.asarray(picture)
            low, high = values.min(), values.max()
            if not 0 <= low <= high <= 255 or 0 < high <= 1:
                raise ValueError(f"its pixels are numbers from {low:g} to {high:g}, not from 0 to 255; store 8 bits")
        return picture.convert("RGB")


def fit_image(picture: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, 3], RGB; a picture of another size is scaled, and cropped around its centre."""
    picture = picture.convert("RGB")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)
