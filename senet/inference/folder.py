"""A trained network as a folder of the Hugging Face hub: weights, config.json, model card."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from senet.errors import ConfigError, RunError
from senet.extras import library
from senet.inference.card import model_card
from senet.inference.formats import LARGEST_DIFFERENCE, export, facts_of, random_images
from senet.inference.network import Trained
from senet.models.from_timm import is_of_timm
from senet.rundir.files import check_output, fsync_directory

WEIGHTS = "model.safetensors"


def export_folder(trained: Trained, output: Path) -> float:
    """Write ``trained`` (on the CPU) into a new folder; returns the largest difference of its logits, as ``export``.

    ``model.safetensors`` is the file of ``--format safetensors``. A network of timm is opened again with timm too.

    Raises:
        ConfigError, RunError: as ``export``; or there is something of this name.
    """
    if output.exists():
        raise ConfigError(f"{output} exists already; remove it, or name another folder with --output")
    check_output("--output", output)
    of_timm = is_of_timm(trained.manifest["config"]["model.name"])
    with TemporaryDirectory(prefix=".export-", dir=output.parent) as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        if of_timm:
            _save_for_timm(trained, folder)
        else:
            config = {"library_name": "senet-ddp", **facts_of(trained, with_preprocessing=False)}
            (folder / "config.json").write_text(f"{json.dumps(config, indent=2, ensure_ascii=False)}\n")
        difference = export(trained, "safetensors", folder / WEIGHTS, with_preprocessing=False)
        if of_timm:
            difference = max(difference, _compare_with_timm(trained, folder))
        (folder / "README.md").write_text(model_card(trained, output.name, of_timm=of_timm))
        folder.replace(output)
    fsync_directory(output.parent)
    return difference


def _save_for_timm(trained: Trained, folder: Path) -> None:
    """config.json as timm writes it. Its preprocessing is that of this program: a central square, bilinear."""
    config = trained.manifest["config"]
    model: Any = copy.deepcopy(trained.model).to(memory_format=torch.contiguous_format)
    known = {key: model.pretrained_cfg.get(key) for key in ("architecture", "first_conv", "classifier")}
    if fixed := model.pretrained_cfg.get("fixed_input_size"):
        known["fixed_input_size"] = fixed
    model.pretrained_cfg = known | {
        "input_size": (3, trained.image_size, trained.image_size),
        "interpolation": "bilinear",
        "crop_pct": trained.center_crop,
        "crop_mode": "center",
        "mean": config["data.mean"],
        "std": config["data.std"],
        "num_classes": len(trained.classes),
    }
    library("timm.models", "timm").save_for_hf(
        model,
        folder,
        model_config={"label_names": list(trained.classes)},
        model_args=config.get("model.args") or None,
        safe_serialization=True,  # replaced by the file that has the facts too
    )


def _compare_with_timm(trained: Trained, folder: Path) -> float:
    network = library("timm", "timm").create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = random_images(trained.image_size)
    with torch.inference_mode():
        found = network(trained.preprocess.test(images))
    difference = float((found - trained.logits(images)).abs().max())
    if not difference <= LARGEST_DIFFERENCE:  # NaN too
        raise RunError(f"logits of the folder as timm opens it differ by {difference:.2g}")
    return difference
