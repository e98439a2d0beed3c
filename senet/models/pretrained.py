"""Weights by name, out of files and run directories, of torchvision and of timm."""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from senet.compat import module_versions, with_module_versions
from senet.config.options import HUBS
from senet.errors import ConfigError, did_you_mean
from senet.extras import library
from senet.rundir.checkpoint import CheckpointError, find_checkpoint, load_tensors, read_checkpoint, unpickle
from senet.rundir.locks import lock

log = logging.getLogger(__name__)
_CONTAINERS = (
    "model", "state_dict", "model_state_dict", "net", "network", "module", "weights",
    "ema", "model_ema", "state_dict_ema",
)  # fmt: skip
"""Keys under which training programs store a state dict; raw weights before averaged ones."""
_SILENCE_S = 60.0  # without data from a server, or a sign of life of the process that downloads


def read_state(path: str, model: nn.Module, arguments: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """The state dict that ``model.init_from=path`` stands for.

    Args:
        model, arguments: what it is for, and how that was built: weights of timm are adapted to the arguments of the
            same network.

    Raises:
        ConfigError: there is none.
    """
    try:
        content = _read(path, model, arguments)
    except FileNotFoundError:
        raise ConfigError(f"model.init_from={path}: no such file") from None
    except (ConfigError, CheckpointError) as error:
        raise ConfigError(f"model.init_from={path}: {error}") from None
    except ValueError as error:
        raise ConfigError(
            f"model.init_from={path} is no file of weights ({error}); torch.save(model.state_dict(), FILE) makes one"
        ) from None
    while name := next((each for each in _CONTAINERS if isinstance(_get(content, each), Mapping)), ""):
        content = content[name]
    state = OrderedDict(content if isinstance(content, Mapping) else {})
    # what a module adds with get_extra_state may be anything
    if not state or not all(isinstance(value, Tensor) or key.endswith("_extra_state") for key, value in state.items()):
        found = ", ".join(str(key) for key in list(state)[:5]) or type(content).__name__
        raise ConfigError(
            f"model.init_from={path} holds no state dict (but {found}); expected tensors by name, alone or as one of "
            f"{', '.join(_CONTAINERS)}"
        )
    versions = module_versions(content)
    return with_module_versions(state, versions or {})


def _read(path: str, model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    of_torchvision, of_timm = (path.startswith(hub) for hub in HUBS)
    if of_torchvision:
        return _of_torchvision(path)
    if of_timm:
        return _of_timm(path, arguments if _is_of(model, path) else {})
    if Path(path, "model.safetensors").is_file():  # as the Hugging Face hub has it, and ./launch.sh export writes it
        return _of_safetensors(Path(path, "model.safetensors"), model)
    if Path(path).is_dir():
        return unpickle(read_checkpoint(find_checkpoint(Path(path))).content)
    if path.endswith(".safetensors"):
        return _of_safetensors(Path(path), model)
    return load_tensors(Path(path))


def _get(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, Mapping) else None


def _is_of(model: nn.Module, path: str) -> bool:
    """Whether weights of timm are of this network."""
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture")
    return path.removeprefix("timm:").partition(".")[0] == architecture


def _of_safetensors(path: Path, model: nn.Module) -> OrderedDict[str, Any]:
    """The versions of modules, which such a file does not have, are taken to be the present ones."""
    safetensors = library("safetensors", "export")
    path.open("rb").close()  # safetensors has an error of its own for a folder that is missing
    try:
        weights = OrderedDict(library("safetensors.torch", "export").load_file(path))
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None
    return with_module_versions(weights, module_versions(model.state_dict()) or {})


def _of_torchvision(path: str) -> Any:
    """``torchvision:NAME:WEIGHTS``, downloaded once into the folder of torch.hub; a hash in the name is checked."""
    from torchvision.models import get_model_weights, list_models

    _, name, which = (*path.split(":", 2), "")[:3]
    if name not in list_models():
        raise ConfigError(f"torchvision has no network {name!r}; {did_you_mean(name, list_models())}")
    known = get_model_weights(name)
    if which not in known.__members__:
        raise ConfigError(f"torchvision has no weights {which!r} of {name}; there is {', '.join(known.__members__)}")
    weights = known[which]
    folder = Path(torch.hub.get_dir(), "checkpoints")
    try:
        with nullcontext() if (folder / Path(weights.url).name).is_file() else _one_at_a_time(folder):
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"{weights.url} cannot be had ({error}); where this host has no network, put that file into {folder}"
        ) from None
    preset = weights.transforms()
    if name in ("googlenet", "inception_v3"):  # which change their input to this when they are made with these weights
        preset.mean = preset.std = [0.5, 0.5, 0.5]
    _say_normalisation(path, preset.mean, preset.std)
    return state


def _of_timm(path: str, arguments: Mapping[str, Any]) -> Any:
    """``timm:NAME.TAG``, downloaded once into the cache of the Hugging Face hub."""
    timm = library("timm", "timm")
    name = path.removeprefix("timm:")
    if not timm.models.is_model_pretrained(name):
        near = did_you_mean(name, timm.list_pretrained()) or "timm.list_pretrained() has the names"
        raise ConfigError(f"timm {timm.__version__} has no weights of this name; {near}")
    try:
        network = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # the hub's client has many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(
            f"the weights cannot be had ({reason}); where this host has no network, download them on one that has, "
            f"and name the file"
        ) from None
    _say_normalisation(path, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
    return network.state_dict()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """One process downloads, the others find the file; a server that says nothing is given up."""
    folder.mkdir(parents=True, exist_ok=True)
    limit_s = socket.getdefaulttimeout()
    with lock(folder / ".senet.lock", patience_s=_SILENCE_S):
        try:
            socket.setdefaulttimeout(_SILENCE_S)
            yield
        finally:
            socket.setdefaulttimeout(limit_s)


def _say_normalisation(path: str, mean: Any, std: Any) -> None:
    values = (f"[{','.join(f'{value:g}' for value in each)}]" for each in (mean, std))
    log.info("model.init_from=%s was trained with data.mean=%s data.std=%s", path, *values)
