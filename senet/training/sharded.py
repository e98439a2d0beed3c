"""Gradients of a batch, shard by shard: the same bits on any number of ranks that divides the shards."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.amp import autocast

from senet.compat import copy_
from senet.config.options import Config
from senet.distributed.groups import broadcast_tensors
from senet.distributed.replicas import refuse_other_outputs, refuse_unused
from senet.distributed.tree import GradientSum
from senet.training.feed import Feed
from senet.training.learner import Learner
from senet.training.losses import build_loss
from senet.training.peers import Peers
from senet.training.scores import Tally
from senet.training.seeds import seed_everything


class Sharded:
    """Rank r of W computes the r-th of W runs of consecutive shards, one after another.

    Buffers and draws follow the shard, never the rank: random numbers are seeded by (seed, step, shard); each forward
    sees the buffers that rank 0 had before the update, and those that shard 0 leaves are kept there.
    """

    def __init__(self, config: Config, learner: Learner, feed: Feed, peers: Peers, tally: Tally) -> None:
        self._config, self._learner, self._feed, self._peers, self._tally = config, learner, feed, peers, tally
        count = config.train.shards // peers.ranks.world_size
        self._shards = range(peers.ranks.rank * count, (peers.ranks.rank + 1) * count)
        trained = {name: p for name, p in learner.network.named_parameters() if p.requires_grad}
        broadcast_tensors(learner.network.parameters())  # once: those of rank 0, as DistributedDataParallel does
        self._buffers = Buffers(learner.network)
        self._sum = GradientSum(trained, peers.ranks)
        self._loss = build_loss(config.train, feed.class_weights(config), "sum")
        self._checked = False  # that the network returns logits in training too

    def backward(self, images_NHWC: Tensor, labels_N: Tensor, indices_N: Tensor, *, epoch: int, step: int) -> None:
        """Leave the gradients of update ``step`` in the parameters: those of the mean loss over the global batch."""
        broadcast_tensors(self._learner.network.buffers())  # once per update
        self._buffers.begin()
        size = len(labels_N) // len(self._shards)
        batches = zip(images_NHWC.split(size), labels_N.split(size), indices_N.split(size), strict=True)
        total = torch.zeros((), device=labels_N.device)
        with autocast(labels_N.device.type, enabled=False):  # weights that are cast inside are kept for all shards
            for shard, batch in zip(self._shards, batches, strict=True):
                seed_everything(self._config.seed, step, shard)
                self._buffers.restore()
                total += self._shard(*batch, epoch, is_last=shard == self._shards[-1])
                if shard == 0:
                    self._buffers.keep()
        self._checked = True
        self._peers.agreement.observe(step + 1, total)
        self._sum.finish()
        if 0 in self._shards:
            self._buffers.take_kept()

    def _shard(self, images_NHWC: Tensor, labels_N: Tensor, indices_N: Tensor, epoch: int, *, is_last: bool) -> Tensor:
        """Forward and backward of one shard, in micro-batches; the sum of its losses. ``is_last``: of this rank."""
        train, learner = self._config.train, self._learner
        total = torch.zeros((), device=labels_N.device)
        micro_batches = self._feed.changed(images_NHWC, labels_N, indices_N, epoch, parts=train.accumulate)
        for index, (images, labels, *others) in enumerate(micro_batches):
            with learner.autocast():
                logits_NK = learner.running(images)
            if not self._checked:
                refuse_other_outputs(logits_NK, (len(labels), self._feed.num_classes))
            loss = self._loss(logits_NK.float(), labels, *others)
            ends = is_last and index == len(micro_batches) - 1
            if ends:
                self._sum.begin_last()
            learner.scaler.scale(loss / train.global_batch_size).backward()
            if not ends:
                self._sum.separate()
            total += loss.detach()
            self._tally.add(loss.detach() / len(labels), logits_NK.detach(), labels)  # stays on the device
        refuse_unused(learner.network)  # of each shard: whether a run is refused does not depend on the number of ranks
        if not is_last:
            self._sum.add()
        return total


class Buffers:
    """The buffers of a network while parts are computed one after another, none of which may see another's."""

    def __init__(self, network: nn.Module) -> None:
        parts = network.modules()
        self._places = [(part, name) for part in parts for name, _ in part.named_buffers(recurse=False)]
        self._before, self._kept = ([b.clone() for b in self._now()] for _ in range(2))

    def begin(self) -> None:
        """Note how they are, at first and before each update."""
        copy_(self._before, self._now())

    def restore(self) -> None:
        """Set them to how they were then."""
        copy_(self._now(), self._before)

    def keep(self) -> None:
        """Note how they are now."""
        copy_(self._kept, self._now())

    def take_kept(self) -> None:
        """Set them to how they were when they were kept."""
        copy_(self._now(), self._kept)

    def _now(self) -> list[Tensor]:
        """A network may put another tensor in the place of a buffer."""
        return [getattr(module, name) for module, name in self._places]
