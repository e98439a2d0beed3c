"""Networks by name: what ``model.name`` stands for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from senet.config.options import CIFAR_RESNETS, NETWORKS, TORCHVISION_RESNETS
from senet.errors import ConfigError
from senet.models import from_timm
from senet.models.senet import PaddedBlock, SENet, SENet18, insert_se
from senet.models.weights import init_from as load_weights
from senet.own import load_function, own_code


def refuse_unknown(name: str, arguments: Mapping[str, Any]) -> None:
    """Whether there is a network of this name that takes these arguments; of a user's own, imports its module.

    Raises:
        ConfigError: there is none, or it does not.
    """
    if from_timm.is_of_timm(name):
        from_timm.refuse_unknown(name, arguments)
    elif ":" in name:
        _load_own(name, arguments)
    elif name not in NETWORKS:
        raise ConfigError(f"model.name={name!r} is neither a known network nor package.module:function nor timm:NAME")


def build_model(
    name: str,
    *,
    num_classes: int,
    reduction: int = 16,
    small_stem: bool = False,
    arguments: Mapping[str, Any] | None = None,
    init_from: str = "",
) -> nn.Module:
    """One of ``options.NETWORKS``, ``package.module:function`` or ``timm:NAME``, with weights from a file if one is
    named. The name is one that ``refuse_unknown`` passes.

    With the same seed a network with gates (``se_resnet20``) and the same without (``resnet20``) start from the same
    weights, except for the gates.

    Args:
        reduction: channels per hidden unit of a gate; ignored without gates.
        small_stem: of torchvision's residual networks: a 3x3 convolution instead of the 7x7 one with stride 2 and the
            pooling, so that the blocks see four times the height and width.
        arguments: more arguments of a user's own function, or of timm.

    Raises:
        ConfigError: the function cannot be imported or called, or the weights are of another network.
    """
    if from_timm.is_of_timm(name):
        model = from_timm.build(name, num_classes, arguments or {})
    elif name not in NETWORKS:
        model = _build_own(name, num_classes, arguments or {})
    elif name == "senet18":
        model = SENet18(num_classes, reduction)
    else:
        plain_name = name.removeprefix("se_")
        model = _build_plain(plain_name, num_classes, small_stem)
        if name != plain_name:
            model = insert_se(model, reduction)
    if init_from:
        load_weights(model, init_from, num_classes, arguments or {})
    return model


def refuse_other_images(model: nn.Module, name: str, size: int) -> None:
    """Refuse a user's network that does not take images [N, 3, size, size]. Tried with a copy on the meta device; what
    cannot run there is found when the network runs.

    Raises:
        ConfigError: a layer expects another shape.
    """
    at: list[nn.Module] = []
    try:
        trial = copy.deepcopy(model).to("meta")
        trial.eval()
        for module in trial.modules():
            module.register_forward_pre_hook(lambda module, _: at.append(module))
        with torch.no_grad():
            trial(torch.zeros(2, 3, size, size, device="meta"))
    except Exception as error:
        asserted = from_timm.is_of_timm(name) and type(error) is AssertionError
        if asserted or (type(error) is RuntimeError and "meta" not in str(error).lower()):
            reason = " ".join(str(error).split())[:200].rstrip(".")
            layer = "" if not at or list(at[-1].children()) else f" in {at[-1]}"
            remedy = f"; try model.args.img_size={size}" if from_timm.has_fixed_size(model) else ""
            raise ConfigError(
                f"model.name={name} takes no images of shape (N, 3, {size}, {size}): {reason}"
                f"{layer}; it must take 3 channels, and data.image_size pixels of height and width{remedy}"
            ) from None


def trains_on_one_image(model: nn.Module, size: int) -> bool:
    """Whether the network can be trained on a batch of one image [1, 3, size, size]. Not if a norm then gets one value
    per channel, which has no variance.
    """
    trial = copy.deepcopy(model).train()
    try:
        with torch.no_grad():
            trial(torch.zeros(1, 3, size, size))
    except ValueError as error:
        if "Expected more than 1" in str(error):  # value per channel, spatial element
            return False
        raise
    return True


def overrun_convolution(model: nn.Module) -> str:
    """The name of a convolution of 1x1 with a stride and fewer than 8 channels whose weights are trained; empty if
    there is none. Their gradient in fp32 and channels_last: an x86 CPU without AVX-512 writes past its memory.

    oneDNN's issue 6035, open in November 2026; seen with torch 2.14.1. In groups, with 8 channels, and with stride 1 it
    was not seen.
    """
    convolutions = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    for name, layer in convolutions:
        is_strided = layer.kernel_size == (1, 1) and max(layer.stride) > 1
        if is_strided and layer.in_channels < 8 and layer.groups == 1 and layer.weight.requires_grad:
            return str(name)
    return ""


def _build_plain(name: str, num_classes: int, small_stem: bool) -> nn.Module:
    if name == "preact_resnet18":
        return SENet18(num_classes, reduction=None)
    if name in CIFAR_RESNETS:  # depth 6n + 2, He et al. 2016, sec. 4.2
        blocks = (int(name.removeprefix("resnet")) - 2) // 6
        return SENet(PaddedBlock, [blocks] * 3, num_classes=num_classes, widths=(16, 32, 64), reduction=None)
    import torchvision

    if name in TORCHVISION_RESNETS:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        if small_stem:
            model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as the others there
            model.maxpool = nn.Identity()
        return model
    # without auxiliary heads the output is one tensor, and every parameter gets a gradient; init_weights=False:
    # torch's default initialisation, as in SENet
    inception: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, aux_logits=False, init_weights=False
    )
    return inception


def _load_own(name: str, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    return load_function("model.name", name, given=["num_classes"], arguments=arguments, arguments_option="model.args")


def _build_own(name: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    function = _load_own(name, arguments)
    given = ", ".join(f"model.args.{key}={value!r}" for key, value in arguments.items())
    with own_code(f"model.name={name}{f' with {given}' if given else ''}"):
        model = function(num_classes=num_classes, **copy.deepcopy(dict(arguments)))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.name={name} returned a {type(model).__name__}; it must be a torch.nn.Module")
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ConfigError(
                f"model.name={name}: the size of {key} is not known before it has run (a lazy layer); give its size, "
                f"e.g. nn.Linear in place of nn.LazyLinear"
            )
    return model
