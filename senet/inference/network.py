"""Open a trained network with its classes and normalisation, for predict, evaluate, export and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

from senet.compat import module_versions, with_module_versions
from senet.config.load import restore_data
from senet.config.options import NETWORKS, AugmentConfig, Config, DataConfig, ModelConfig, types
from senet.data.augment import Preprocess
from senet.distributed.devices import choose_device
from senet.errors import ConfigError
from senet.models.from_timm import is_of_timm
from senet.models.weights import lay_out
from senet.models.zoo import build_model, refuse_unknown
from senet.rundir.checkpoint import Checkpoint, CheckpointError, find_checkpoint, read_checkpoint, unpickle
from senet.training.seeds import seed_everything

_NEEDED = {"model.name", "data.image_size", "data.mean", "data.std", "train.channels_last"}


class Network(Protocol):
    """What a network from a checkpoint and one from an exported file have in common."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""

    @property
    def center_crop(self) -> float:
        """Share of a picture's shorter side that its central square has, which is scaled to that."""

    def logits(self, images_NHWC: Tensor) -> Tensor:
        """uint8 [N, image_size, image_size, 3] -> float32 [N, classes]."""


@dataclass(frozen=True)
class Described:
    """What is said of a network: by the manifest of a checkpoint, or the facts in an exported file."""

    manifest: Mapping[str, Any]
    """``classes`` in label order, ``config`` (flat: "data.mean"), ``step``; from a checkpoint all of
    ``resume.identity``, ``sha256`` and ``weights``, which ones ``model`` has: "averaged" or "raw"."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""
        return tuple(self.manifest["classes"])

    @property
    def image_size(self) -> int:
        """Height and width in pixels that the images are scaled to."""
        return int(self.manifest["config"]["data.image_size"])

    @property
    def center_crop(self) -> float:
        """Share of a picture's shorter side that its central square has, which is scaled to that. Older files do not
        have it."""
        return float(self.manifest["config"].get("data.center_crop", DataConfig.center_crop))


@dataclass(frozen=True)
class Trained(Described):
    """A network in evaluation mode, in fp32, on one device."""

    checkpoint: Path
    model: nn.Module
    """No gradients."""
    preprocess: Preprocess
    device: torch.device

    @torch.inference_mode()
    def logits(self, images_NHWC: Tensor) -> Tensor:
        """uint8 [N, image_size, image_size, 3] on any device -> float32 [N, classes] on ``device``.

        In fp32 whatever the training used, so that the other images of a batch change at most the last bits.
        """
        images_NCHW = self.preprocess.test(images_NHWC.to(self.device))
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            logits_NK: Tensor = self.model(images_NCHW)
        return logits_NK.float()


def load_trained(path: Path | str, *, model_name: str = "", device: str = "auto") -> Trained:
    """The network of a checkpoint, or of the best one of a run directory (the newest if none is marked best).

    Its weights are those that the training reports as its result: from 5 / (1 - train.ema_decay) updates on the
    averaged ones, before that the raw ones.

    Args:
        model_name: required for a user's own network (``package.module:function``), and only for that: a file must not
            choose which code is run.
        device: auto (a GPU if one is visible), cpu or cuda.

    Raises:
        ConfigError: no checkpoint there, a damaged one, weights that do not fit the network, an own network without
            ``model_name``, or an output that is not one logit per class.
    """
    checkpoint = open_checkpoint(Path(path))
    try:
        payload = unpickle(checkpoint.content)
        # the manifests of older versions do not say: those versions used the averaged weights if there were any
        which = checkpoint.manifest.get("weights", "averaged" if payload.get("ema") else "raw")
        weights = (payload["ema"] if which == "averaged" else payload)["model"]
    except CheckpointError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from None
    except (AssertionError, KeyError, TypeError):
        raise ConfigError(
            f"{checkpoint.path} holds no weights of a network; it is no checkpoint of a training"
        ) from None
    manifest = checkpoint.manifest | {"weights": which}
    return assemble(manifest, weights, origin=checkpoint.path, model_name=model_name, device=device)


def assemble(
    manifest: Mapping[str, Any], weights: Mapping[str, Tensor], *, origin: Path, model_name: str, device: str
) -> Trained:
    """Build the network that a manifest describes, with these weights. The rest is as for ``load_trained``.

    Args:
        manifest: ``classes`` and, in ``config``, the options of model and data, and ``train.channels_last``.
        origin: the file of the weights, for messages.
    """
    config = manifest["config"]
    name = config["model.name"]
    arguments = config.get("model.args", {})
    if name not in NETWORKS and not is_of_timm(name) and model_name != name:
        given = f"--model {model_name}" if model_name else "no --model"
        raise ConfigError(f"{origin} is of model.name={name}, but got {given}; say --model {name} to run it")
    seed = config.get("seed", Config.seed)
    seed_everything(seed)  # here and below as in training, for random values that are not saved
    refuse_unknown(name, arguments)
    seed_everything(seed)
    model = build_model(
        name,
        num_classes=len(manifest["classes"]),
        reduction=config.get("model.reduction", ModelConfig.reduction),  # older checkpoints do not have it
        small_stem=config.get("model.small_stem", ModelConfig.small_stem),
        arguments=arguments,
    )
    # the version of each module; a file without versions (safetensors) is taken to be of the present ones
    versions = module_versions(weights) or module_versions(model.state_dict())
    try:
        model.load_state_dict(with_module_versions(weights, versions))
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{origin} does not fit model.name={name} of this version: {reason}") from None
    chosen = choose_device(device, option="--device")
    model.eval()
    model.float().requires_grad_(False).to(chosen)
    lay_out(model, channels_last=config["train.channels_last"])
    trained = Trained(manifest, origin, model, preprocess_of(config, chosen), chosen)
    check_logits(trained, origin)
    return trained


def check_facts(facts: Mapping[str, Any], origin: Path) -> None:
    """Refuse a manifest, or the facts in an exported file, that do not describe a network.

    Raises:
        ConfigError: names the file, and what is missing, of another type or out of range.
    """
    classes, config = facts.get("classes"), facts.get("config")
    if not (isinstance(config, dict) and config.keys() >= _NEEDED):
        missing = sorted(_NEEDED - (config.keys() if isinstance(config, dict) else set()))
        raise ConfigError(
            f"{origin} does not say {', '.join(missing)}; it is no file of this program, or a damaged one"
        )
    texts = classes if isinstance(classes, list) and classes else [None]
    if not all(isinstance(name, str) for name in texts) or len(set(texts)) < len(texts):
        raise ConfigError(
            f"{origin}: classes must be names, each once; it is no file of this program, or a damaged one"
        )
    reduction, seed = config.get("model.reduction", ModelConfig.reduction), config.get("seed", Config.seed)
    for key, fits in (
        ("seed", type(seed) is int and seed >= 0),
        ("model.name", isinstance(config["model.name"], str)),
        ("model.reduction", type(reduction) is int and reduction >= 1),
        ("data.store", config.get("data.store", "auto") in get_args(types()["data.store"])),
        ("model.args", isinstance(config.get("model.args", {}), dict)),
    ):
        if not fits:
            raise ConfigError(f"{origin}: {key}={config[key]!r} is no value of this option")
    if (weights := facts.get("weights", "raw")) not in ("raw", "averaged"):
        raise ConfigError(f"{origin}: weights={weights!r} must be raw or averaged; it is a damaged file")
    try:
        geometry = {"data.center_crop"} & config.keys()
        restore_data({key: config[key] for key in _NEEDED | geometry if key.startswith("data.")})
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def check_logits(network: Network, origin: Path) -> None:
    """Refuse a network whose output is not one logit per class; costs a forward pass of one image."""
    size, count = network.image_size, len(network.classes)
    try:
        shape = list(network.logits(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape)
    except Exception as error:  # from a user's own network, or a graph that takes other images
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{origin} takes no images of {size} pixels ({type(error).__name__}: {reason})") from None
    if shape != [1, count]:
        raise ConfigError(f"{origin} gives logits of shape {shape} for an image, but names {count} classes")


def preprocess_of(config: Mapping[str, Any], device: torch.device) -> Preprocess:
    """The normalisation that a flat configuration describes."""
    return Preprocess(
        AugmentConfig(),
        mean=config["data.mean"],
        std=config["data.std"],
        seed=0,  # not used: only training changes images at random
        device=device,
        channels_last=config["train.channels_last"],
    )


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the file that ``load_trained`` would, verified but not unpickled; ConfigError as there."""
    try:
        checkpoint = read_checkpoint(find_checkpoint(path))
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    except KeyError as error:
        raise ConfigError(f"{path}: a manifest there does not say {error}; restore it") from None
    check_facts(checkpoint.manifest, checkpoint.path)
    return checkpoint
