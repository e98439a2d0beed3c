"""Data sets that come as arrays: torchvision's, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from senet.config.options import DataConfig
from senet.data.download import damaged, download
from senet.data.sources.index import SPLITS, some
from senet.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """What a store is built from: for each split the labels, and functions of the number of an image."""

    classes: Sequence[str]
    labels: Mapping[str, np.ndarray]
    image: Mapping[str, Callable[[int], Image.Image]]
    """Raises Unreadable."""
    facts: Mapping[str, Callable[[int], str]] = field(default_factory=dict)
    """What tells whether an image has changed, where it is in a file."""
    left_out: str = ""


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
        {"train": parts[2], "test": parts[3]},
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
            {split: np.asarray(found[split].targets) for split in SPLITS},
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


ARRAYS: dict[str, Callable[[DataConfig], Source]] = {
    "cifar10": _downloaded("CIFAR10", "cifar-10-python.tar.gz"),
    "cifar100": _downloaded("CIFAR100", "cifar-100-python.tar.gz"),
    "fashion_mnist": _downloaded("FashionMNIST", "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"),
    "digits": _digits,
}
