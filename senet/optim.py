"""Parameter groups, optimizers, and the average of the weights."""

from __future__ import annotations

from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import muon  # torch.optim.Muon itself takes nothing but matrices
from torch.optim.sgd import sgd
from torch.optim.swa_utils import AveragedModel

from senet.config import OptimConfig


class Muon(torch.optim.Optimizer):
    """Muon for the groups that say so (``muon=True``), SGD for the others.

    A kernel [C_out, C_in, h, w] counts as a matrix [C_out, C_in * h * w]; Muon steps along the nearest semi-orthogonal
    matrix to its momentum (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"), whatever the
    order of the columns. The arithmetic of both is torch's own; every rank does all of it.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "muon": False})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            options = {name: group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
            if group["muon"]:
                matrices = ([_as_matrix(t) for t in tensors] for tensors in (parameters, gradients, buffers))
                coefficients = (3.4445, -4.7750, 2.0315)  # and the next two: torch.optim.Muon's defaults
                muon(
                    *matrices, **options, ns_coefficients=coefficients, ns_steps=5, eps=1e-7, adjust_lr_fn=None,
                    has_complex=False,
                )  # fmt: skip
            else:
                sgd(parameters, gradients, buffers, **options, dampening=0.0, maximize=False)


def _as_matrix(kernel: Tensor) -> Tensor:
    """A view of [C_out, C_in, h, w] as [C_out, columns], the columns in the order of memory."""
    if kernel.is_contiguous(memory_format=torch.channels_last):
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.view(len(kernel), -1)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Over all parameters that are trained; those of one dimension (norms, biases) decay only if asked for.

    Each group has its learning rate at the schedule's factor 1 as ``initial_lr``.
    """
    groups: dict[str, dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            options = _options(parameter, config)
            groups.setdefault(str(options), {"params": [], **options})["params"].append(parameter)
    if config.name == "adamw":
        return torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=config.betas)
    kind = Muon if config.name == "muon" else torch.optim.SGD
    return kind(list(groups.values()), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def _options(parameter: Tensor, config: OptimConfig) -> dict[str, Any]:
    if config.name == "muon" and parameter.ndim == 4 and parameter[0, 0].numel() > 1:
        return {
            "muon": True,
            "initial_lr": config.muon_lr,
            "weight_decay": config.muon_weight_decay,
            "momentum": config.muon_momentum,
            "nesterov": True,
        }
    if parameter.ndim > 1:
        return {"initial_lr": config.lr, "weight_decay": config.weight_decay}
    decay = config.weight_decay if config.decay_norms_and_biases else 0.0
    return {"initial_lr": config.bias_lr or config.lr, "weight_decay": decay}


class WeightAverage(AveragedModel):
    """Exponential moving average of weights and running statistics.

    The first update copies; update n + 1 keeps min(decay, (1 + n) / (10 + n)) of the average, so that a short run is
    not dominated by its first weights. Unlike its parent's, the update does not synchronise: it counts on the CPU.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self._pairs: tuple[list[list[Tensor]], ...] | None = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the model's present weights."""
        n = int(self.n_averaged)
        keep = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        if self._pairs is None:  # once: what is loaded later is copied into the same tensors
            both = [list(each.state_dict().values()) for each in (self.module, model)]
            smooth = [tensor.is_floating_point() for tensor in both[0]]
            counters = [not floating for floating in smooth]
            self._pairs = tuple([list(compress(tensors, kind)) for tensors in both] for kind in (smooth, counters))
        (averaged, current), (counts, counted) = self._pairs
        torch._foreach_lerp_(averaged, current, 1 - keep)
        if counts:
            torch._foreach_copy_(counts, counted)
        self.n_averaged += 1


def build_ema(model: nn.Module, decay: float) -> WeightAverage | None:
    """None where ``decay`` is 0."""
    return WeightAverage(model, decay) if decay else None
