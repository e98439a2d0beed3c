"""A trained network with all that its use needs: what predict, evaluate, export and report begin from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from senet.augment import Preprocess
from senet.checkpoint import Checkpoint, CheckpointError, is_best, published_files, read_checkpoint, unpickle
from senet.config import NETWORKS, AugmentConfig, ConfigError, ModelConfig
from senet.files import read_json
from senet.zoo import build_model


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, in fp32, on one device, and what its checkpoint says of it."""

    checkpoint: Path
    manifest: Mapping[str, Any]
    """``classes`` in label order, ``config`` (flat: "data.mean"), ``step``, ``sha256``: see ``resume.identity``."""
    model: nn.Module
    """The averaged weights where there are any, else the raw ones; no gradients."""
    preprocess: Preprocess
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""
        return tuple(self.manifest["classes"])

    @property
    def image_size(self) -> int:
        """Height and width in pixels that the images were scaled to."""
        return int(self.manifest["config"]["data.image_size"])

    @torch.inference_mode()
    def logits(self, images_NHWC: Tensor) -> Tensor:
        """uint8 [N, image_size, image_size, 3] on any device -> float32 [N, classes] on ``device``.

        In fp32 whatever the training used, so that the batch an image is in does not matter beyond the last bits.
        """
        images_NCHW = self.preprocess.test(images_NHWC.to(self.device))
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            logits_NK: Tensor = self.model(images_NCHW)
        return logits_NK


def load_trained(path: Path, *, model_name: str = "", device: str = "auto") -> Trained:
    """The network of a checkpoint, or of the best one of a run directory (the newest where none is marked best).

    Args:
        model_name: needed, and only needed, for somebody's own network (``package.module:function``): a file must not
            choose which code is run, so the person who opens it says it again.
        device: auto (a GPU where one is visible), cpu or cuda.

    Raises:
        ConfigError: no checkpoint there, a damaged one, one of other weights than the network has, or an own network
            that was not named.
    """
    checkpoint = open_checkpoint(path)
    try:
        payload = unpickle(checkpoint.content)
    except CheckpointError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from None
    weights = payload["ema"]["model"] if payload["ema"] else payload["model"]
    return assemble(checkpoint.manifest, weights, origin=checkpoint.path, model_name=model_name, device=device)


def assemble(
    manifest: Mapping[str, Any], weights: Mapping[str, Tensor], *, origin: Path, model_name: str, device: str
) -> Trained:
    """The network that a manifest (``classes``, and of ``config`` what begins with model, data, and the memory order)
    describes, with these weights; the rest as for ``load_trained``, ``origin`` being the file they come from.
    """
    config = manifest["config"]
    name = config["model.name"]
    if name not in NETWORKS and model_name != name:
        given = f"--model {model_name}" if model_name else "no --model"
        raise ConfigError(f"{origin} is of model.name={name}, given was {given}; say --model {name} to run it")
    model = build_model(
        name,
        num_classes=len(manifest["classes"]),
        reduction=config.get("model.reduction", ModelConfig.reduction),  # younger than some checkpoints
        small_stem=config.get("model.small_stem", ModelConfig.small_stem),
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{origin} does not fit model.name={name} of this version: {reason}") from None
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if device == "cuda" and chosen.type != "cuda":
        raise ConfigError("device=cuda, but no GPU is visible; use cpu or auto")
    layout = torch.channels_last if config["train.channels_last"] else torch.contiguous_format
    model = model.eval().requires_grad_(False).to(chosen).to(memory_format=layout)
    return Trained(origin, manifest, model, preprocess_of(config, chosen), chosen)


def preprocess_of(config: Mapping[str, Any], device: torch.device) -> Preprocess:
    """The normalisation that a flat configuration describes."""
    return Preprocess(
        AugmentConfig(),
        mean=config["data.mean"],
        std=config["data.std"],
        seed=0,  # of the random changes, which belong to training
        device=device,
        channels_last=config["train.channels_last"],
    )


def open_checkpoint(path: Path) -> Checkpoint:
    """The verified file that ``load_trained`` takes, not unpickled; ConfigError as there."""
    try:
        return read_checkpoint(_find(path))
    except CheckpointError as error:
        raise ConfigError(str(error)) from None


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder; name a run directory or a step_*.pt file")
    resumed_from = read_json(path / "owner.json").get("resumed_from", {})
    files = published_files(path / "checkpoints", {int(generation): step for generation, step in resumed_from.items()})
    if not files:
        raise ConfigError(f"{path}: no checkpoints in {path / 'checkpoints'}; name a run directory or a step_*.pt file")
    return next((file for file in files if is_best(file)), files[0])
