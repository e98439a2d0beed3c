"""Parts of a network by the names of their parameters, as ``optim.freeze`` and ``optim.lr_scale`` have them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from torch import nn

from senet.errors import ConfigError, did_you_mean


def select(network: nn.Module, patterns: Collection[str], option: str) -> dict[str, list[str]]:
    """Each pattern with the names of the parameters that it matches.

    Raises:
        ConfigError: a pattern matches none.
    """
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    found = {pattern: [name for name in names if _matches(pattern, name)] for pattern in patterns}
    for pattern in (each for each, matched in found.items() if not matched):
        parts = dict.fromkeys(part for name in names for part in _with_those_above(name))
        top = [part for part in parts if "." not in part]
        near = did_you_mean(pattern.rstrip("*."), list(parts)) or f"the network has {', '.join(top[:20])}"
        raise ConfigError(f"{option}: {pattern!r} matches no parameter of the network; {near}")
    return found


def freeze(network: nn.Module, patterns: Collection[str]) -> None:
    """Take these parameters out of the training.

    Raises:
        ConfigError: a pattern matches none, or no parameter is left to train.
    """
    for names in select(network, patterns, "optim.freeze").values():
        for name in names:
            network.get_parameter(name).requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"optim.freeze={list(patterns)} leaves no parameter to train; leave a part out of it")


def scaled(network: nn.Module, factors: Collection[str]) -> dict[nn.Parameter, str]:
    """Trained parameters -> the pattern of ``optim.lr_scale`` that they match.

    Raises:
        ConfigError: a pattern matches no trained parameter, or two match the same one.
    """
    found: dict[nn.Parameter, str] = {}
    for pattern, names in select(network, factors, "optim.lr_scale").items():
        trained = [name for name in names if network.get_parameter(name).requires_grad]
        if not trained:
            raise ConfigError(f"optim.lr_scale: {pattern!r} matches only what is frozen, e.g. {names[0]}; leave it out")
        for name in trained:
            if (other := found.setdefault(network.get_parameter(name), pattern)) != pattern:
                raise ConfigError(
                    f"optim.lr_scale: {other!r} and {pattern!r} both match {name}; have one of them match it"
                )
    return found


def frozen_norms(network: nn.Module, patterns: Collection[str]) -> dict[str, nn.Module]:
    """Norms that must not change their running statistics, by name: all of their parameters are frozen, or they have
    none and are themselves matched."""
    found = {}
    for part, norm in network.named_modules():
        if getattr(norm, "running_mean", None) is not None:
            names = [f"{part}.{name}" for name, _ in norm.named_parameters(recurse=False)]
            if all(_is_matched(patterns, name) for name in names or [part]):
                found[part] = norm
    return found


def frozen_names(network: nn.Module, patterns: Collection[str]) -> set[str]:
    """Of the parameters and buffers that keep their values, as the state dict has them."""
    names = (name for name, _ in network.named_parameters(remove_duplicate=False))
    norms = frozen_norms(network, patterns)
    buffers = (f"{part}.{name}" for part, norm in norms.items() for name, _ in norm.named_buffers(recurse=False))
    return {name for name in names if _is_matched(patterns, name)} | {*buffers}


def _is_matched(patterns: Collection[str], name: str) -> bool:
    return any(_matches(pattern, name) for pattern in patterns)


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern (``*``, ``?``, ``[...]``, as in a shell; ``*`` matches dots too) is that of a name, or of a
    module that holds it: ``layer1`` and ``layer1.*`` match all below it."""
    return any(fnmatchcase(part, pattern) for part in _with_those_above(name))


def _with_those_above(name: str) -> Iterator[str]:
    """``a.b.weight`` -> ``a``, ``a.b``, ``a.b.weight``."""
    words = name.split(".")
    return (".".join(words[: count + 1]) for count in range(len(words)))
