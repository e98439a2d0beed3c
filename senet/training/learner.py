"""What is trained and what trains it, on one rank's device: built, saved, restored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.amp import GradScaler, autocast
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from senet.config.options import Config
from senet.distributed.agreement import NonFiniteLoss
from senet.distributed.ranks import Ranks
from senet.distributed.replicas import replicate, run_once, sync_batch_norms
from senet.models.parts import frozen_names, frozen_norms
from senet.models.weights import lay_out
from senet.training.feed import black_micro_batch, two_black_images
from senet.training.flops import Utilisation
from senet.training.optim import WeightAverage, build_average, build_optimizer, load_optimizer


@dataclass(frozen=True)
class Learner:
    """A network with its average, its optimizer, and the precision it runs in."""

    network: nn.Module
    """Without wrappers: this is what is evaluated, averaged and saved."""
    running: nn.Module
    """The network as it runs in training: compiled, if asked for."""
    replicas: DistributedDataParallel | None
    """That in DistributedDataParallel, which averages its gradients over the ranks; None with ``train.shards``, and on
    one rank, where there is nothing to average and its hooks would only cost time."""
    average: WeightAverage | None
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    autocast: Callable[[], AbstractContextManager[None]]
    still: Sequence[nn.Module]
    """Norms that stay in evaluation mode."""
    work: Utilisation
    """What an image costs, where it is known."""

    @classmethod
    def build(cls, config: Config, ranks: Ranks, network: nn.Module, amp: str, num_classes: int) -> Learner:
        """Move the network to its device and run it there for the first time. A collective: call on every rank."""
        network.to(ranks.device)
        lay_out(network, channels_last=config.train.channels_last)
        if config.train.sync_bn:
            network = sync_batch_norms(network)
        frozen = frozen_names(network, config.optim.freeze)
        # before it runs: then it may hold what cannot be copied
        average = build_average(network, config.train.ema_decay, frozen)
        mixed: Callable[[], AbstractContextManager[None]] = partial(
            autocast, ranks.device.type, dtype=torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "off"
        )
        compiled = torch.compile(network) if config.train.compile else network
        assert isinstance(compiled, nn.Module)
        pair = two_black_images(config, ranks.device)
        work = Utilisation.measure(  # before DistributedDataParallel, whose hooks would wait for the other ranks
            partial(_once, network, pair, num_classes, mixed), len(pair), amp=amp, ranks=ranks
        )
        black = black_micro_batch(config, ranks) if config.train.compile else pair
        averages = ranks.world_size > 1 and not config.train.shards
        replicas = replicate(compiled, ranks, comm_hook=config.train.comm_hook) if averages else None
        _once(replicas or compiled, black, num_classes, mixed)
        optimizer = build_optimizer(network, config.optim, fused=amp != "fp16")
        scaler = GradScaler(ranks.device.type, enabled=amp == "fp16")
        still = list(frozen_norms(network, config.optim.freeze).values())
        return cls(network, compiled, replicas, average, optimizer, scaler, mixed, still, work)

    @property
    def weights(self) -> Literal["raw", "averaged"]:
        """Those that are the result, if the run ends now."""
        return "averaged" if self.average is not None and self.average.counts else "raw"

    def train(self) -> None:
        """Set the training mode, which evaluation has left."""
        (self.replicas or self.running).train()
        for norm in self.still:
            norm.eval()

    def networks(self) -> dict[str, nn.Module]:
        """What is evaluated, by its name in metrics.jsonl: raw weights "test", averaged ones "ema"."""
        return {"test": self.network} | ({"ema": self.average.module} if self.average else {})

    def gradient_norm(self) -> torch.Tensor:
        """Of all gradients together, before the optimizer takes them. With fp16 a sync point: once per log interval."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        return get_total_norm(gradients) / self.scaler.get_scale()  # 1.0 without fp16

    def refuse_non_finite(self, step: int) -> None:
        """A loss can be finite and its gradient not. Sync point: once per checkpoint.

        Raises:
            NonFiniteLoss: a weight is NaN or infinite.
        """
        trained = [p.detach() for p in self.network.parameters() if p.requires_grad]
        if not torch.isfinite(get_total_norm(trained)):
            raise NonFiniteLoss(f"a weight is not finite after step {step}; nothing was saved from it on")

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint. Refers to the tensors in use: copy them before the next update."""
        average = self.average
        return {
            "model": self.network.state_dict(),
            "ema": {"model": average.module.state_dict(), "updates": average.n_averaged} if average else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Continue from a checkpoint's payload, the same on every rank."""
        self.network.load_state_dict(payload["model"])
        load_optimizer(self.optimizer, payload["optimizer"])
        if payload["scaler"]:  # empty unless the run was in fp16
            self.scaler.load_state_dict(payload["scaler"])
        if self.average is None:
            return
        if payload["ema"]:
            self.average.module.load_state_dict(payload["ema"]["model"])
            self.average.n_averaged.copy_(payload["ema"]["updates"])
        else:  # switched on with resume.allow_changes: the average begins here
            self.average.module.load_state_dict(payload["model"])


def _once(
    network: nn.Module, black: torch.Tensor, num_classes: int, mixed: Callable[[], AbstractContextManager[None]]
) -> None:
    with mixed():
        run_once(network, dummy_NCHW=black, num_classes=num_classes)
