"""Where images come from: torchvision's data sets, an image folder, scikit-learn's digits."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from senet.config.options import DataConfig
from senet.data.download import damaged, download
from senet.errors import ConfigError

SPLITS = ("train", "test")
# Others are refused: Pillow hands EPS files to Ghostscript, which runs them as programs
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# what Windows, macOS, Synology and file systems leave in folders
_NO_IMAGES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found")
_LAYOUT = "expected data.folder/train/<class>/<image> and data.folder/test/<class>/<image>"


@dataclass(frozen=True)
class Source:
    """What a store is built from: for each split the labels, and a function from index to image."""

    classes: Sequence[str]
    labels: Mapping[str, Sequence[int]]
    image: Mapping[str, Callable[[int], Image.Image]]
    """Raises Unreadable."""


class Unreadable(Exception):
    """A file that is no image, or a damaged one: names it and says why."""


def _image_folder(config: DataConfig) -> Source:
    root = Path(config.folder)
    paths, classes = {}, {}
    for split in SPLITS:
        paths[split], classes[split] = image_paths(root, split)
    if classes["train"] != classes["test"]:
        odd = some(sorted(set(classes["train"]) ^ set(classes["test"])))
        raise ConfigError(f"{root}: train and test must have the same classes; only one of them has {odd}")

    def load(split: str) -> Callable[[int], Image.Image]:
        def read(index: int) -> Image.Image:
            path = paths[split][index]
            try:
                return read_image(path)
            except UnidentifiedImageError:
                raise Unreadable(f"{path.relative_to(root)} (no image)") from None
            except Exception as error:  # each decoder raises its own
                reason = " ".join(str(error).split())[:100]
                raise Unreadable(f"{path.relative_to(root)} ({reason or type(error).__name__})") from None

        return read

    number = {name: index for index, name in enumerate(classes["train"])}
    labels = {split: [number[path.parent.name] for path in paths[split]] for split in SPLITS}
    return Source(classes["train"], labels, {split: load(split) for split in SPLITS})


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


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split. ConfigError: there is none. OSError: it cannot be read."""
    if not root.is_dir():
        here = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"data.folder={root}: no such folder{here}; {_LAYOUT}")
    if not (folder := root / split).is_dir():
        raise ConfigError(f"{folder}: no such folder; {_other_name(folder) or _LAYOUT}")
    return folder


def image_paths(root: Path, split: str) -> tuple[list[Path], list[str]]:
    """All files of a split in a fixed order, and its class names; without hidden files and those in ``_NO_IMAGES``.

    Raises:
        ConfigError: no such folder, no classes, a class without images; or what would silently be left out: folders in
            a class, images outside of one, broken links.
    """
    try:
        folder = split_folder(root, split)
        classes, left_out = [], []
        for entry in _entries(folder):
            if entry.is_dir():
                classes.append(entry.name)
            elif not entry.is_file() or entry.suffix.lower() in IMAGE_SUFFIXES:
                left_out.append(entry)
        paths: list[Path] = []
        empty = []
        for name in classes:
            entries = _entries(folder / name)
            files = [entry for entry in entries if entry.is_file()]
            paths += files
            left_out += sorted(set(entries) - set(files))
            empty += [] if entries else [name]
    except OSError as error:
        raise ConfigError(f"data.folder={root} cannot be read: {error}") from None
    if left_out:
        named = some([f"{entry.relative_to(root)} ({_kind(entry)})" for entry in left_out])
        raise ConfigError(f"{root}: {named} would be left out; {_LAYOUT}, without folders in a class")
    if not classes:
        raise ConfigError(f"{folder} has no class folders; {_LAYOUT}")
    if empty:
        raise ConfigError(f"{some([str(folder / name) for name in empty])} has no images; {_LAYOUT}")
    for name in classes:
        if "\udc80" <= max(name) <= "\udcff":  # how Python represents bytes that are not UTF-8
            raise ConfigError(f"{folder / name}: the name of a class must be UTF-8; rename the folder")
    return paths, classes


def _entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in _NO_IMAGES)


def _kind(entry: Path) -> str:
    if entry.is_dir():
        return "a folder"
    if entry.is_file():
        return "outside of class folders"
    return "a broken link" if entry.is_symlink() else "not a file"


def _other_name(folder: Path) -> str:
    """The remedy where the test split has another of its usual names."""
    names = ("val", "valid", "validation", "dev") if folder.name == "test" else ()
    found = next((name for name in names if (folder.parent / name).is_dir()), "")
    return (
        found
        and f"there is {folder.parent / found}: rename it, or link to it with ln -s {found} {shlex.quote(str(folder))}"
    )


def file_facts(root: Path, split: str) -> list[str]:
    """For each file of a split, in the order of ``image_paths``, its path, size and time of change."""
    facts = []
    for path in image_paths(root, split)[0]:
        try:
            stat = path.stat()
        except OSError as error:  # gone since it was listed
            raise ConfigError(f"data.folder={root} cannot be read: {error}") from None
        facts.append(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\0")
    return facts


def some(names: Sequence[str], most: int = 10) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
        try:
            found = {split: dataset(folder, train=split == "train") for split in SPLITS}
        except (OSError, RuntimeError, ValueError, AssertionError):  # missing or incomplete
            found = _download(config, dataset, folder, expected)
        return Source(
            found["train"].classes,
            {split: [int(label) for label in found[split].targets] for split in SPLITS},
            {split: _from_array(np.asarray(found[split].data)) for split in SPLITS},
        )

    return read


def _download(config: DataConfig, dataset: Any, folder: Path, expected: str) -> dict[str, Any]:
    try:
        return download(dataset, folder, SPLITS)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        bad = some(damaged(dataset, folder))
        raise ConfigError(
            f"data.source={config.source} cannot be downloaded ({reason}){bad and f', and {folder} has {bad}'}; "
            f"put {expected} into {folder}, or use data.source=imagefolder data.folder=<folder>, or data.source=digits"
        ) from None


def _from_array(images: np.ndarray) -> Callable[[int], Image.Image]:
    return lambda index: Image.fromarray(images[index])


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "cifar10": _downloaded("CIFAR10", "cifar-10-python.tar.gz"),
    "cifar100": _downloaded("CIFAR100", "cifar-100-python.tar.gz"),
    "fashion_mnist": _downloaded("FashionMNIST", "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"),
    "imagefolder": _image_folder,
    "digits": _digits,
}
