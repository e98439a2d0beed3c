"""Parameter groups, optimizers, and the average of the weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd
from torch.optim.swa_utils import AveragedModel

from senet.compat import copy_, lerp_, muon_
from senet.config.options import OptimConfig
from senet.models.parts import scaled


class Muon(torch.optim.Optimizer):
    """Muon for the groups with ``muon=True``, SGD for the others.

    A kernel [C_out, C_in, h, w] is taken as a matrix [C_out, C_in * h * w]. The step of Muon is the semi-orthogonal
    matrix nearest to its momentum (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"), for
    any order of the columns. The arithmetic of both is torch's own. Every rank computes all of it.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "muon": False})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update from the present gradients."""
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
    """The tensor itself if its memory layout is that of the parameter, else a copy with that layout."""
    return tensor if tensor.stride() == parameter.stride() else torch.empty_like(parameter).copy_(tensor)


def _fusible(parameter: Tensor) -> bool:
    """The fused loop on a CPU goes through the elements as they lie in memory; with 16-bit ones, some versions of torch
    compute wrong results (pytorch#191763).
    """
    dense = parameter.is_contiguous() or parameter.is_contiguous(memory_format=torch.channels_last)
    return dense and parameter.dtype == torch.float32


def _as_matrix(kernel: Tensor) -> Tensor:
    """A view of [C_out, C_in, h, w] as [C_out, columns], with the columns as they lie in memory."""
    if kernel.is_contiguous(memory_format=torch.channels_last):
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.view(len(kernel), -1)


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """For all parameters that are trained. Weight decay for those of one dimension (norms, biases) only if asked for.

    ``initial_lr`` of each group is its learning rate where the schedule's factor is 1.

    Args:
        fused: SGD and Adam in one pass over the memory, if the parameters allow it. Not with a ``GradScaler``, which
            would then leave it to the optimizer to skip a step: that is not counted, and if the first step is skipped,
            the momentum is never written.

    Raises:
        ConfigError: a pattern of ``lr_scale`` matches no trained parameter, or two match the same one.
    """
    scaled_by = scaled(model, config.lr_scale)
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = fused and all(_fusible(p) for p in parameters)
    is_kernel = [config.name == "muon" and p.ndim == 4 and p[0, 0].numel() > 1 for p in parameters]
    kernels = list(compress(parameters, is_kernel))
    others = [p for p, kernel in zip(parameters, is_kernel, strict=True) if not kernel]
    plain: dict[str, Any] = {"weight_decay": config.weight_decay, "initial_lr": config.lr}
    # the groups must be those of the checkpoint, so they depend on this option, the kind of optimizer, what is frozen
    # and the patterns of lr_scale alone
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
    groups = [part for group in (*groups, {"params": kernels, **of_muon}) for part in _split(group, scaled_by, config)]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    momentum: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.name == "muon":
        return Muon(groups, lr=config.lr, **momentum)
    return torch.optim.SGD(groups, lr=config.lr, **momentum, fused=fused)


def _split(
    group: dict[str, Any], scaled_by: Mapping[nn.Parameter, str], config: OptimConfig
) -> Iterator[dict[str, Any]]:
    """The group, less those of its parameters that have a factor of their own: these are groups by themselves."""
    for pattern in ("", *sorted(config.lr_scale)):
        chosen = [p for p in group["params"] if scaled_by.get(p, "") == pattern]
        if chosen:
            yield group | {"params": chosen, "initial_lr": group["initial_lr"] * config.lr_scale.get(pattern, 1.0)}


def load_optimizer(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Continue from a checkpoint's state, but with the options of this run."""
    # lr is set before each update; where none is left, it stays that of the last one
    options = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    groups = [saved | mine for saved, mine in zip(state_dict["param_groups"], options, strict=True)]
    optimizer.load_state_dict(state_dict | {"param_groups": groups})
    for (
        parameter,
        state,
    ) in optimizer.state.items():  # train.channels_last may have changed: a fused step would not notice
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = _laid_as(parameter, value)


class WeightAverage(AveragedModel):
    """Exponential moving average of weights and running statistics.

    The first update copies. Update n + 1 keeps min(decay, (1 + n) / (10 + n)) of the average, so that the first weights
    do not dominate a short run. It counts on the CPU and, unlike that of torch, does not wait for the device. Tensors
    that are not finite at the start (a mask of -inf) are copied, and so are integers, extra state, and what is
    ``frozen``, by name: the mean of -0.0 and -0.0 would be 0.0.
    """

    def __init__(self, model: nn.Module, decay: float, frozen: Collection[str] = ()) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        state = self.module.state_dict(keep_vars=True)
        still = {id(state[name]) for name in frozen if name in state}
        self._smooth = [
            t.is_floating_point() and bool(t.isfinite().all()) and id(t) not in still
            for t in _saved_tensors(self.module)
        ]
        own = nn.Module.get_extra_state
        self._extra = [name for name, part in model.named_modules() if type(part).get_extra_state is not own]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the model's present weights to the average."""
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
        """Whether the average, not the raw weights, is the result of the run: from 5 / (1 - decay) updates on. Before,
        it may still be far from the raw weights. Not the better one on the test images: that would be training on them.
        """
        return int(self.n_averaged) >= round(5 / (1 - self.decay))


def _saved_tensors(model: nn.Module) -> list[Tensor]:
    """The tensors of the state dict, each once: one that two layers share is in it twice."""
    return list(dict.fromkeys(t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)))


def build_average(model: nn.Module, decay: float, frozen: Collection[str] = ()) -> WeightAverage | None:
    """None where ``decay`` is 0."""
    return WeightAverage(model, decay, frozen) if decay else None
