"""Files of images, decoded to RGB."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from senet.data.crops import center_box
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

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What sets a picture upright, by its orientation tag; from 5 on width and height change places."""


class Unreadable(Exception):
    """A file that is no image, or a damaged one: names it and says why."""


def decode(index: Index, row: int) -> Image.Image:
    """An image of a split. Unreadable: it cannot be decoded."""
    try:
        return read_image(BytesIO(index.place(row).read()))
    except Exception as error:  # each decoder raises its own
        raise Unreadable(f"{index.keys[row]} ({reason_of(error)})") from None


def reason_of(error: Exception) -> str:
    """In a few words, why ``read_image`` has raised this."""
    if isinstance(error, UnidentifiedImageError):
        return "no image"
    return " ".join(str(error).split())[:100] or type(error).__name__


def read_image(file: Path | BinaryIO, *, max_pixels: int | None = None) -> Image.Image:
    """Read a file of ``IMAGE_FORMATS``, in any mode, as RGB: the first frame, upright as its orientation tag says,
    transparency laid on white.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: not an image; damaged; more than ``max_pixels``
            (checked before decoding) or 179 million pixels; 16-bit, 32-bit or float pixels of an unknown range. A
            malicious file may make its decoder raise other errors.
    """
    with open_picture(file) as picture:
        width, height = picture.size
        if max_pixels is not None and width * height > max_pixels:
            raise Image.DecompressionBombError(f"{width} x {height} pixels, {max_pixels:,} are taken at most")
        return as_shown(picture)


def open_picture(file: Path | BinaryIO) -> ImageFile:
    """Only its header is read. Raises what ``read_image`` does."""
    return Image.open(file, formats=IMAGE_FORMATS)


def as_shown(picture: ImageFile) -> Image.Image:
    """What ``read_image`` returns, of an opened picture. Raises the same."""
    picture.load()
    turn = TURNS.get(orientation(picture))  # some formats have their tags after the pixels
    shown = _on_white(_in_8_bits(picture))
    return shown if turn is None else shown.transpose(turn)


def orientation(picture: ImageFile) -> int:
    """The number in the tag; 1 where there is none, or the tags cannot be read."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of damaged tags, each kind its own
        return 1


def _in_8_bits(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip all values above 255
        values = np.asarray(picture)
        if 0 < values.max() < 256:
            raise ValueError(f"its pixels have 16 bits, but none is above {values.max()}; store 8 bits")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        values = np.asarray(picture)
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= 255 or 0 < high <= 1:
            raise ValueError(f"its pixels are numbers from {low:g} to {high:g}, not from 0 to 255; store 8 bits")
    return picture


def _on_white(picture: Image.Image) -> Image.Image:
    """As RGB."""
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def fit_image(picture: Image.Image, size: int, center_crop: float = 1.0) -> np.ndarray:
    """uint8 [size, size, 3], RGB: the central square of a picture, scaled; see ``center_box``."""
    box = center_box(*picture.size, center_crop)
    return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box))
