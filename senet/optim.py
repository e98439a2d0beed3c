"""Parameter groups, optimizers, and the average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from senet.config import OptimConfig

Tensors = tuple[Tensor, ...] | list[Tensor]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters; those of one dimension (norms, biases) decay only if asked for."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    if not config.decay_norms_and_biases:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One learning rate for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def build_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving average of weights and running statistics; None where ``decay`` is 0.

    The first update copies; update n + 1 keeps min(decay, (1 + n) / (10 + n)) of the average, so that a short run is
    not dominated by its first weights.
    """
    if decay == 0:
        return None

    def average(averaged: Tensors, current: Tensors, _count: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            n = int(ema.n_averaged)  # on the CPU: no synchronisation
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(averaged, current)

    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return ema
