"""Where images come from: torchvision's data sets, an image folder, scikit-learn's digits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from senet.config import ConfigError, DataConfig

SPLITS = ("train", "test")
_DOWNLOAD_TRIES = 3
# Others are refused: Pillow hands EPS to Ghostscript, which is a programming language
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True)
class Source:
    """What a store is built from: for each split the labels, and a function from index to image."""

    classes: Sequence[str]
    labels: Mapping[str, Sequence[int]]
    image: Mapping[str, Callable[[int], Image.Image]]


def _image_folder(config: DataConfig) -> Source:
    root = Path(config.folder)
    paths, classes = {}, {}
    for split in SPLITS:
        paths[split], classes[split] = image_paths(root, split)
    if classes["train"] != classes["test"]:
        odd = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise ConfigError(f"{root}: train and test must have the same classes; only one of them has {', '.join(odd)}")

    def load(split: str) -> Callable[[int], Image.Image]:
        def read(index: int) -> Image.Image:
            path = paths[split][index]
            try:
                return read_image(path)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ConfigError(f"{path} is not a readable image ({error}); repair or remove it") from None

        return read

    number = {name: index for index, name in enumerate(classes["train"])}
    labels = {split: [number[path.parent.name] for path in paths[split]] for split in SPLITS}
    return Source(classes["train"], labels, {split: load(split) for split in SPLITS})


def read_image(file: Path | BinaryIO, *, max_pixels: int | None = None) -> Image.Image:
    """RGB, whatever mode a file of ``IMAGE_FORMATS`` holds: the first frame, without transparency; orientation tags are
    not followed.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: not an image, a damaged one, one of more than
            ``max_pixels`` (looked at before decoding) or 179 million pixels, one of 16 bits, 32 bits or floats whose
            numbers fit no scale; on a file made to do harm also what the decoder stumbles over.
    """
    with Image.open(file, formats=IMAGE_FORMATS) as opened:
        picture: Image.Image = opened
        width, height = picture.size
        if max_pixels is not None and width * height > max_pixels:
            raise Image.DecompressionBombError(f"{width} x {height} pixels, {max_pixels:,} are taken at most")
        if picture.mode.startswith("I;16"):  # Pillow would make 255 of all that is above it
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
    """uint8 [size, size, 3], RGB: scaled and cropped to the centre where it has another size."""
    picture = picture.convert("RGB")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def image_paths(root: Path, split: str) -> tuple[list[Path], list[str]]:
    """All files of a split in a fixed order, and its class names."""
    folder = root / split
    remedy = "expected data.folder/train/<class>/<image> and data.folder/test/<class>/<image>"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; {remedy}")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ConfigError(f"{folder} has no class folders; {remedy}")
    paths = []
    for name in classes:
        files = sorted(p for p in (folder / name).iterdir() if p.is_file() and not p.name.startswith("."))
        if not files:
            raise ConfigError(f"{folder / name} has no images; {remedy}")
        paths += files
    return paths, classes


def _digits(_config: DataConfig) -> Source:
    """1,797 scans of handwritten digits, 8x8 with 17 grey levels; a fifth (360, stratified) for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    parts = train_test_split(pixels, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    images = {"train": parts[0], "test": parts[1]}
    return Source(
        [str(name) for name in digits.target_names],
        {"train": parts[2].tolist(), "test": parts[3].tolist()},
        {split: _from_array(images[split]) for split in SPLITS},
    )


def _downloaded(name: str, expected: str) -> Callable[[DataConfig], Source]:
    """A torchvision data set, whose archive is checked against its published MD5 before it is opened."""

    def read(config: DataConfig) -> Source:
        import torchvision

        dataset = getattr(torchvision.datasets, name)
        folder = Path(config.root) / "downloads"
        for attempt in range(_DOWNLOAD_TRIES):
            try:
                found = {split: dataset(folder, train=split == "train", download=True) for split in SPLITS}
                break
            except (OSError, RuntimeError) as error:
                if attempt + 1 == _DOWNLOAD_TRIES:
                    raise ConfigError(
                        f"data.source={config.source} cannot be downloaded ({error}); put {expected} into {folder}, or "
                        f"use data.source=imagefolder data.folder=<folder>, or data.source=digits"
                    ) from None
                time.sleep(1 + attempt)
        return Source(
            found["train"].classes,
            {split: [int(label) for label in found[split].targets] for split in SPLITS},
            {split: _from_array(np.asarray(found[split].data)) for split in SPLITS},
        )

    return read


def _from_array(images: np.ndarray) -> Callable[[int], Image.Image]:
    return lambda index: Image.fromarray(images[index])


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "cifar10": _downloaded("CIFAR10", "cifar-10-python.tar.gz"),
    "cifar100": _downloaded("CIFAR100", "cifar-100-python.tar.gz"),
    "fashion_mnist": _downloaded("FashionMNIST", "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"),
    "imagefolder": _image_folder,
    "digits": _digits,
}
