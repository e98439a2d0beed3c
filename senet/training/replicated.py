"""Gradients of a batch by DistributedDataParallel: each rank its share, and the mean over the ranks."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from senet.config.options import Config
from senet.distributed.replicas import refuse_other_outputs
from senet.training.feed import Feed
from senet.training.learner import Learner
from senet.training.losses import build_loss
from senet.training.peers import Peers
from senet.training.scores import Tally
from senet.training.seeds import seed_everything


class Replicated:
    """Statistics, random numbers and the order of the sums depend on the number of ranks."""

    def __init__(self, config: Config, learner: Learner, feed: Feed, peers: Peers, tally: Tally) -> None:
        self._config, self._learner, self._feed, self._peers, self._tally = config, learner, feed, peers, tally
        self._loss = build_loss(config.train, feed.class_weights(config), "mean")
        self._checked = False  # that the network returns logits in training too

    def backward(self, images_NHWC: Tensor, labels_N: Tensor, indices_N: Tensor, *, epoch: int, step: int) -> None:
        """Leave the gradients of update ``step`` in the parameters: those of the mean loss over the global batch."""
        train, learner, ranks = self._config.train, self._learner, self._peers.ranks
        replicas = learner.replicas
        seed_everything(self._config.seed, step, ranks.rank)
        micro_batches = self._feed.changed(images_NHWC, labels_N, indices_N, epoch, parts=train.accumulate)
        total = torch.zeros((), device=ranks.device)
        for index, (images, labels, *others) in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            # gradients are averaged over the ranks in the last backward only; no_sync must cover the forward as well
            with nullcontext() if is_last or replicas is None else replicas.no_sync():
                with learner.autocast():
                    logits_NK = (replicas or learner.running)(images)
                if not self._checked:
                    refuse_other_outputs(logits_NK, (len(labels), self._feed.num_classes))
                loss = self._loss(logits_NK.float(), labels, *others)
                total += loss.detach()
                if is_last:
                    self._peers.agreement.observe(step + 1, total)
                learner.scaler.scale(loss / len(micro_batches)).backward()
            self._tally.add(loss.detach(), logits_NK.detach(), labels)  # stays on the device
        self._checked = True
