"""Networks before they are trained by several ranks: tried once, wrapped in DistributedDataParallel."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from senet.compat import BatchNorm
from senet.distributed.ranks import Ranks
from senet.errors import ConfigError
from senet.own import own_code


def replicate(model: nn.Module, ranks: Ranks, *, comm_hook: Literal["none", "bf16", "fp16"]) -> DistributedDataParallel:
    """Wrap in DDP. ``run_once`` must follow."""
    ddp = DistributedDataParallel(
        model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None, gradient_as_bucket_view=True
    )
    if comm_hook == "bf16":
        ddp.register_comm_hook(None, default_hooks.bf16_compress_hook)
    elif comm_hook == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return ddp


def run_once(model: nn.Module, *, dummy_NCHW: Tensor, num_classes: int) -> None:
    """One dummy step in evaluation mode, which has DDP build its final gradient buckets now.

    A new DDP reduces in one bucket, and after a step rebuilds its buckets in the order in which the gradients arrived;
    with three ranks or more this changes the order of the sums. One dummy step, before anything is restored, gives an
    unbroken and a resumed run the same buckets from their first step. Parameters and buffers that it changes are
    restored.

    Raises:
        ConfigError: the network does not return one logit per class, or a parameter gets no gradient.
    """
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    model.eval()
    with own_code("the network", "failed on its first images"):
        logits_NK = model(dummy_NCHW)
    refuse_other_outputs(logits_NK, (len(dummy_NCHW), num_classes))
    logits_NK.sum().backward()  # the next forward of DDP rebuilds the buckets
    refuse_unused(model)
    model.zero_grad()
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


def refuse_other_outputs(output: Any, shape: tuple[int, int]) -> None:
    """Check what a network returned for images.

    Raises:
        ConfigError: it is not one tensor of this shape, [images, classes].
    """
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != shape:
        raise ConfigError(
            f"the network returned {found} for {shape[0]} images, expected logits {shape}; have it return one tensor "
            f"with num_classes columns, in training too"
        )


def refuse_unused(model: nn.Module) -> None:
    """Call after a backward pass, on every rank. DDP itself would only notice in the next forward, and never under
    ``no_sync``.

    Raises:
        ConfigError: a trainable parameter has no gradient; names it.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            name = name.removeprefix("module.").removeprefix("_orig_mod.")  # of DDP and of torch.compile
            raise ConfigError(
                f"{name} gets no gradient, and every trained parameter needs one; use it "
                f"in forward, remove it, or freeze it with requires_grad_(False)"
            )


def sync_batch_norms(model: nn.Module) -> nn.Module:
    """The same network with SyncBatchNorm in place of each BatchNorm.

    Raises:
        ConfigError: a layer derived from BatchNorm, whose own part (an activation) torch would drop; names it.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and type(module) not in plain:
            raise ConfigError(
                f"train.sync_bn=true would make a plain SyncBatchNorm of {name}, a {type(module).__name__}; set it to "
                f"false, or build the network of BatchNorm2d and separate layers"
            )
    synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return synchronised
