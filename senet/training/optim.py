"""Parameter groups, optimizers, and the average of the weights."""

from __future__ import annotations

from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd
from torch.optim.swa_utils import AveragedModel

from senet.compat import copy_, lerp_, muon_
from senet.config.options import OptimConfig


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
            gradients = [_laid_as(p, p.grad) for p in parameters]
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            options = {name: group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
            if group["muon"]:
                matrices = ([_as_matrix(t) for t in tensors] for tensors in (parameters, gradients, buffers))
                muon_(*matrices, **options, ns_steps=group["ns_steps"])
            else:
                sgd(parameters, gradients, buffers, **options, dampening=0.0, maximize=False)


def _laid_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor itself where it lies in memory as the parameter does, else a copy that does."""
    return tensor if tensor.stride() == parameter.stride() else torch.empty_like(parameter).copy_(tensor)


def _fusible(parameter: Tensor) -> bool:
    """The fused loop on a CPU takes the elements as they lie in memory; 16-bit ones some versions of torch get wrong
    (pytorch#191763).
    """
    dense = parameter.is_contiguous() or parameter.is_contiguous(memory_format=torch.channels_last)
    return dense and parameter.dtype == torch.float32


def _as_matrix(kernel: Tensor) -> Tensor:
    """A view of [C_out, C_in, h, w] as [C_out, columns], the columns in the order of memory."""
    if kernel.is_contiguous(memory_format=torch.channels_last):
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.view(len(kernel), -1)


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """Over all parameters that are trained; those of one dimension (norms, biases) decay only if asked for.

    Each group has its learning rate at the schedule's factor 1 as ``initial_lr``.

    Args:
        fused: SGD and Adam in one pass over the memory, where the parameters allow it. Not under a ``GradScaler``: it
            would leave the skipping of a step to the optimizer, where nobody counts it, and a first step that is
            skipped would leave momentum that was never written.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = fused and all(_fusible(p) for p in parameters)
    is_kernel = [config.name == "muon" and p.ndim == 4 and p[0, 0].numel() > 1 for p in parameters]
    kernels = list(compress(parameters, is_kernel))
    others = [p for p, kernel in zip(parameters, is_kernel, strict=True) if not kernel]
    plain: dict[str, Any] = {"weight_decay": config.weight_decay, "initial_lr": config.lr}
    # which groups there are is part of a checkpoint: it depends on this one option and the kind of optimizer
    if config.decay_norms_and_biases:
        groups = [{"params": others, **plain}]
    else:
        vectors = {"weight_decay": 0.0, "initial_lr": config.bias_lr or config.lr}
        groups = [
            {"params": [p for p in others if p.ndim > 1], **plain},
            {"params": [p for p in others if p.ndim <= 1], **vectors},
        ]
    of_muon = {"muon": True, "momentum": config.muon_momentum, "nesterov": True}
    of_muon |= {
        "weight_decay": config.muon_weight_decay,
        "initial_lr": config.muon_lr,
        "ns_steps": config.muon_ns_steps,
    }
    groups = [group for group in (*groups, {"params": kernels, **of_muon}) if group["params"]]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    momentum: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.name == "muon":
        return Muon(groups, lr=config.lr, **momentum)
    return torch.optim.SGD(groups, lr=config.lr, **momentum, fused=fused)


def load_optimizer(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Continue from a checkpoint's state, with this run's options where it had others."""
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    groups = [saved | mine for saved, mine in zip(state_dict["param_groups"], options, strict=True)]
    optimizer.load_state_dict(state_dict | {"param_groups": groups})
    for parameter, state in optimizer.state.items():  # of another train.channels_last: a fused step would not notice
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = _laid_as(parameter, value)


class WeightAverage(AveragedModel):
    """Exponential moving average of weights and running statistics.

    The first update copies; update n + 1 keeps min(decay, (1 + n) / (10 + n)) of the average, so that a short run is
    not dominated by its first weights. Unlike its parent's, the update does not synchronise: it counts on the CPU.
    What is no number to begin with (a mask of -inf) is copied, as integers and extra state are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self._smooth = [t.is_floating_point() and bool(t.isfinite().all()) for t in _saved_tensors(self.module)]
        own = nn.Module.get_extra_state
        self._extra = [name for name, part in model.named_modules() if type(part).get_extra_state is not own]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the model's present weights."""
        n = int(self.n_averaged)
        keep = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        averaged, current = _saved_tensors(self.module), _saved_tensors(model)
        smooth, others = self._smooth, [not smooth for smooth in self._smooth]
        lerp_(list(compress(averaged, smooth)), list(compress(current, smooth)), 1 - keep)
        if any(others):
            copy_(list(compress(averaged, others)), list(compress(current, others)))
        for name in self._extra:
            self.module.get_submodule(name).set_extra_state(model.get_submodule(name).get_extra_state())
        self.n_averaged += 1

    @property
    def counts(self) -> bool:
        """Whether the average, not the raw weights, is the result of the run: from 5 / (1 - decay) updates on. Sooner
        it may still be far from where training is; and to choose on the test images would be to train on them.
        """
        return int(self.n_averaged) >= round(5 / (1 - self.decay))


def _saved_tensors(model: nn.Module) -> list[Tensor]:
    """Those of the state dict, each once: what two layers share stands there twice."""
    return list(dict.fromkeys(t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)))


def build_ema(model: nn.Module, decay: float) -> WeightAverage | None:
    """None where ``decay`` is 0."""
    return WeightAverage(model, decay) if decay else None
