"""Parameter groups, optimizers, and the average of the weights."""

from __future__ import annotations

from itertools import compress

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from senet.config import OptimConfig


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


class WeightAverage(AveragedModel):
    """Exponential moving average of weights and running statistics.

    The first update copies; update n + 1 keeps min(decay, (1 + n) / (10 + n)) of the average, so that a short run is
    not dominated by its first weights. Unlike its parent's, the update does not synchronise: it counts on the CPU.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the model's present weights."""
        n = int(self.n_averaged)
        keep = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        averaged, current = list(self.module.state_dict().values()), list(model.state_dict().values())
        smooth = [a.is_floating_point() for a in averaged]
        torch._foreach_lerp_(list(compress(averaged, smooth)), list(compress(current, smooth)), 1 - keep)
        counters = [not floating for floating in smooth]
        if any(counters):
            torch._foreach_copy_(list(compress(averaged, counters)), list(compress(current, counters)))
        self.n_averaged += 1


def build_ema(model: nn.Module, decay: float) -> WeightAverage | None:
    """None where ``decay`` is 0."""
    return WeightAverage(model, decay) if decay else None
