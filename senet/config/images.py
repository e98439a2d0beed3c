"""Which options say where the images are, which sources read them, and how they are kept and cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from senet.config.options import AugmentConfig, DataConfig
from senet.errors import ConfigError

_FILES = ("imagefolder", "table", "webdataset")
_READ_BY = {"folder": _FILES, "table": ("table",), "columns": ("table", "webdataset"), "splits": _FILES}
_NEEDED = {
    "imagefolder": ("folder", "folder with train/<class>/* and test/<class>/*"),
    "webdataset": ("folder", "folder with train-*.tar and test-*.tar"),
    "table": ("table", "CSV file with columns path, label, split"),
}
_LARGEST_DECODED = 64  # pixels: twelve kilobytes an image, about what its file has
_ENTRIES = {"columns": ("path", "label", "split"), "splits": ("train", "test")}


def stored_as(data: DataConfig) -> Literal["pixels", "encoded"]:
    """What ``data.store`` stands for."""
    if data.store != "auto":
        return data.store
    return "encoded" if data.source in _FILES and data.image_size > _LARGEST_DECODED else "pixels"


def kept_as(saved: Mapping[str, Any]) -> str:
    """The same of flat options from a file. Those without ``data.store`` are of a version that had pixels alone."""
    source, size = (saved.get(f"data.{name}", getattr(DataConfig, name)) for name in ("source", "image_size"))
    return stored_as(DataConfig(source=source, image_size=size, store=saved.get("data.store", "pixels")))


def check_source(data: DataConfig) -> None:
    """ConfigError where the files of ``data.source`` are not named, or columns and splits are that there cannot be."""
    if data.store == "encoded" and data.source not in _FILES:
        raise ConfigError(
            f"data.store=encoded packs files, and data.source={data.source} has none; use data.store=pixels"
        )
    option, what = _NEEDED.get(data.source, ("", ""))
    if option and not getattr(data, option):
        raise ConfigError(f"data.source={data.source} needs data.{option}=<{what}>")
    for option, known in _ENTRIES.items():
        for key, value in getattr(data, option).items():
            if key not in known or not isinstance(value, str) or not value or "\n" in value:
                raise ConfigError(
                    f"data.{option}.{key}={value!r}: names are given to {', '.join(known)} alone, in one line of text"
                )
    if data.source == "webdataset" and (odd := [key for key in data.columns if key != "label"]):
        raise ConfigError(f"data.columns.{odd[0]} is read of tables alone; of shards data.columns.label is")


def check_crops(data: DataConfig, augment: AugmentConfig) -> None:
    """ConfigError for what only decoded images have, or only those that are decoded for each batch."""
    kept, (low, high) = stored_as(data), augment.crop_area
    why = "" if data.store == kept else f" (data.store=auto is that for data.source={data.source} of this image_size)"
    if kept == "encoded" and data.resident == "on":
        raise ConfigError(
            f"data.resident=on keeps decoded images on the GPU, and data.store=encoded{why} decodes them for each "
            f"batch; set data.resident=auto, or data.store=pixels"
        )
    if low > high:
        raise ConfigError(f"augment.crop_area=[{low}, {high}] must rise, e.g. augment.crop_area=[{high},{low}]")
    if (low, high) == (1, 1):
        return
    given = f"augment.crop_area=[{low}, {high}]"
    if kept == "pixels":
        raise ConfigError(
            f"{given} cuts pictures before they are scaled, and data.store=pixels{why} has them scaled already; set "
            f"data.store=encoded, or augment.crop_area=[1,1]"
        )
    if augment.crop_padding:
        raise ConfigError(
            f"{given} and augment.crop_padding={augment.crop_padding} both move the image; set augment.crop_padding=0"
        )


def refuse_ignored_files(data: DataConfig) -> None:
    """Of a command line; what is saved with a checkpoint may hold what other sources read."""
    for option, sources in _READ_BY.items():
        if (value := getattr(data, option)) and data.source not in sources:
            shown = "".join(f".{key}={text}" for key, text in value.items()) if isinstance(value, dict) else f"={value}"
            raise ConfigError(
                f"data.{option}{shown} is read with data.source={' or '.join(sources)} alone, and "
                f"data.source={data.source}; add data.source={sources[0]}, or leave data.{option} out"
            )
