"""Networks of timm: ``model.name=timm:NAME``. Name and arguments may come out of a file: none reads weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from senet.errors import ConfigError, did_you_mean
from senet.extras import library

PREFIX = "timm:"
_NOT_FOR_USERS = {
    "num_classes": "it comes from the data",
    "in_chans": "images have 3 channels",
    "pretrained": "weights are read with model.init_from",
    "checkpoint_path": "weights are read with model.init_from",
    "pretrained_cfg": "weights are read with model.init_from",
    "pretrained_cfg_overlay": "weights are read with model.init_from",
    "cache_dir": "weights are read with model.init_from",
    "features_only": "the network must return logits",
}


def is_of_timm(name: str) -> bool:
    """Whether ``model.name`` stands for a network of timm."""
    return name.startswith(PREFIX)


def has_fixed_size(network: nn.Module) -> bool:
    """Whether it is built for one size of images, which an argument ``img_size`` changes."""
    return bool(getattr(network, "pretrained_cfg", {}).get("fixed_input_size"))


def refuse_unknown(name: str, arguments: Mapping[str, Any]) -> None:
    """ConfigError for a name that timm does not have, and for an argument that its network does not take. Costs the
    import of timm and, with arguments, a network without memory."""
    timm = library("timm", "timm")
    own = name.removeprefix(PREFIX)
    if not timm.is_model(own) or "." in own:  # after a point: the name of weights
        near = did_you_mean(own, timm.list_models()) or "timm.list_models() has the names"
        raise ConfigError(f"model.name={name}: timm {timm.__version__} has no network of this name; {near}")
    for key in arguments:
        if key in _NOT_FOR_USERS:
            raise ConfigError(f"model.args.{key}={arguments[key]}: {_NOT_FOR_USERS[key]}; leave this option out")
    if arguments:
        # not every network can be made without memory: it is built later
        with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
            build(name, 10, arguments)


def build(name: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The untrained network, of a name that timm has.

    Raises:
        ConfigError: timm's code raised an error; it has none of its own for arguments that are wrong.
    """
    timm = library("timm", "timm")
    try:
        network: nn.Module = timm.create_model(name.removeprefix(PREFIX), num_classes=num_classes, **arguments)
    except Exception as error:
        none_wanted = torch.get_default_device().type == "meta"
        if isinstance(error, RuntimeError | MemoryError) and (none_wanted or "memory" in str(error)):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        given = ", ".join(f"model.args.{key}={value}" for key, value in arguments.items())
        raise ConfigError(f"model.name={name} cannot be built with {given or 'no model.args'} ({reason})") from None
    return network
