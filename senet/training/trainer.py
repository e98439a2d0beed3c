"""The loop: fit, train_epoch, train_step, finish_epoch, save. Receives built parts, builds none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from senet.config.options import Config
from senet.distributed.agreement import StopRequested
from senet.distributed.devices import memory_gb
from senet.distributed.groups import check_in_sync, gather, sum_over_ranks
from senet.distributed.replicas import refuse_unused
from senet.distributed.timing import OwnTime, Stopwatch
from senet.errors import note
from senet.rundir.history import judged
from senet.rundir.phases import Phases
from senet.training.evaluation import evaluate
from senet.training.feed import Feed
from senet.training.learner import Learner
from senet.training.peers import Peers
from senet.training.profiling import Profiling
from senet.training.record import Record
from senet.training.replicated import Replicated
from senet.training.rows import epoch_line, epoch_row, interval_line, interval_row
from senet.training.schedule import lr_at
from senet.training.scores import Scores, Tally
from senet.training.sharded import Sharded
from senet.training.state import Summary, TrainState

log = logging.getLogger(__name__)
Observer = Callable[[], None]
"""Called on every rank after each update; where it raises StopRequested, on all ranks alike, the run stops there."""


@dataclass
class Trainer:
    """Trains to the end of the schedule or to an agreed stop. Call every method on all ranks."""

    config: Config
    learner: Learner
    feed: Feed
    peers: Peers
    record: Record
    state: TrainState
    phases: Phases = field(default_factory=Phases)
    observers: list[Observer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steps_per_epoch = self.feed.sampler.batches_per_epoch
        self.total_steps = self.steps_per_epoch * self.config.train.epochs
        self.tally = Tally(self.peers.ranks.device)
        kind = Sharded if self.config.train.shards else Replicated
        self.gradients = kind(self.config, self.learner, self.feed, self.peers, self.tally)
        self.training = Stopwatch()
        self.own_time = OwnTime(self.learner.running, self.peers.ranks)
        self._saved_at = (self.state.step, self.state.epochs_done)
        self._spent_before = self.state.spent
        self._check_every = self.config.train.desync_check_every
        self._grad_norm = torch.zeros(())  # of the last step that is logged, or clipped
        self._checked = False  # that the network uses all its parameters in training too
        self.profiling = Profiling(self.config, self.peers, self.record, self.steps_per_epoch)
        self.learner.optimizer.register_step_post_hook(self._count_update)

    def fit(self) -> Summary:
        """Train and evaluate until all epochs are done or the last ones brought nothing better, or until all ranks have
        agreed to stop and saved.

        Raises:
            NonFiniteLoss: a loss was NaN or infinite; nothing was saved from that step on.
        """
        try:
            while not self.state.is_over(self.config.train):
                with self.training:
                    self.train_epoch()
                self.finish_epoch()
        except StopRequested:
            self.peers.set_time_limit(self.config.distributed.eval_timeout_s)
            self.save(wait=True)
            return Summary("stopped", self.state.step, self.state.last_result)
        except Exception as error:
            note(error, step=self.state.step)
            raise
        finally:
            self.phases.enter("saving")  # what is left is to publish how it ended
        self.profiling.finish()
        reason = self.state.impatience(self.config.train)
        return Summary("finished", self.state.step, self.state.last_result, reason)

    def train_epoch(self) -> None:
        """Train on the batches of this epoch that are left: all, or none if the run was stopped in the evaluation."""
        config, epoch, first = self.config, self.state.epochs_done, self.state.step
        done, end = first - epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch
        title = f"epoch {epoch + 1}/{config.train.epochs}"
        self.learner.train()
        self.own_time.lap_s()
        with closing(self.feed.train(epoch, done)) as images:  # no thread decodes on, however this ends
            batches = self.own_time.fetch(self.phases.waiting(images))
            batches = self.profiling.over(batches, first, end)
            for batch in self.record.progress.over(batches, title=title, total=self.steps_per_epoch, done=done):
                images_NHWC, labels_N, indices_N = self.feed.to_device(*batch)
                self.train_step(images_NHWC, labels_N, indices_N, epoch)
                step = self.state.step
                if step == first + 1:  # that one may compile, and has the time of a start
                    self.peers.set_time_limit(config.distributed.step_timeout_s)
                if step % config.log.every_steps == 0:
                    self.log()
                if self._check_every and step % self._check_every == 0:
                    self.peers.agreement.conclude()
                    # sync point: once per train.desync_check_every
                    check_in_sync(self.learner.network, self.peers.ranks, self.peers.group)
                for observer in self.observers:
                    observer()
                if self.peers.agreement.stop_agreed:
                    raise StopRequested
                if step % config.checkpoint.every_steps == 0 and step < end:  # the last is saved after the evaluation
                    self.save()

    def train_step(self, images_NHWC: Tensor, labels_N: Tensor, indices_N: Tensor, epoch: int) -> None:
        """One update from this rank's share of the global batch: uint8 images, labels, and sample indices."""
        state, learner = self.state, self.learner
        for group in learner.optimizer.param_groups:
            group["lr"] = self.lr(state.step, group["initial_lr"])
        self.gradients.backward(images_NHWC, labels_N, indices_N, epoch=epoch, step=state.step)
        if not self._checked:
            refuse_unused(learner.network)
            self._checked = True
        self.peers.vote()
        if learner.scaler.is_enabled():
            self.peers.agreement.settle()
        self._clip()
        state.skipped_steps += 1  # _count_update takes it back when the optimizer runs
        learner.scaler.step(learner.optimizer)  # sync point, fp16 only: whether a gradient overflowed is read here
        learner.scaler.update()
        learner.optimizer.zero_grad()
        if learner.average is not None:
            learner.average.update_parameters(learner.network)
        state.step += 1

    def _clip(self) -> None:
        """Limit the norm of the gradients, if asked for; for a step that is logged, take it in any case."""
        largest, learner = self.config.train.clip_norm, self.learner
        if largest:
            learner.scaler.unscale_(learner.optimizer)
            self._grad_norm = clip_grad_norm_(learner.network.parameters(), largest)
        elif (self.state.step + 1) % self.config.log.every_steps == 0:
            self._grad_norm = learner.gradient_norm()

    def lr(self, step: int, initial_lr: float) -> float:
        """Of update ``step``, for a group whose rate is ``initial_lr`` at the schedule's factor 1."""
        epochs = self.config.train.epochs
        lr = lr_at(step, self.config.schedule, lr=initial_lr, steps_per_epoch=self.steps_per_epoch, epochs=epochs)
        return lr * self.state.plateau.factor

    def log(self) -> None:
        """A row of what happened since the last one. Sync point: once per log interval."""
        state = self.state
        self._collect()
        sums, elapsed_s = state.take_interval()
        scores = Scores.from_sums(sums, self.feed.num_classes)
        memory = memory_gb(self.peers.ranks.device)
        row = interval_row(state, scores, elapsed_s, self._last_lr(), float(self._grad_norm), memory)
        row |= (mfu := self._mfu(row["images_per_s"]))
        self.record.writer.write("train", state.step, **row)
        self.record.progress.facts(interval_line(row, state.step, self.total_steps))
        self.record.tell(step=state.step, epoch=state.epochs_done, images_per_s=round(row["images_per_s"], 1), **mfu)
        own_s = gather(self.own_time.lap_s(), self.peers.group)
        # with sync_bn a forward pass waits for the slowest rank too
        if not self.config.train.sync_bn and (text := self.own_time.compare(own_s, elapsed_s)):
            log.warning("step %d: %s", state.step, text)

    def finish_epoch(self) -> None:
        """Evaluate, update the plateau, write the epoch's row, and save."""
        state, config = self.state, self.config
        self.peers.set_time_limit(config.distributed.eval_timeout_s)
        with self.training:  # a GPU may still be computing the last step
            self._collect()
        train = Scores.from_sums(state.epoch_sums, self.feed.num_classes)
        results = self.evaluate()
        lr, weights = self._last_lr(), self.learner.weights
        if config.schedule.plateau:
            state.plateau.update(train.loss, config.schedule, config.optim.lr)
        mfu = self._mfu(train.num_images / state.epoch_s)
        state.epochs_done += 1
        result = results[judged({"weights": weights})]
        is_best = state.judge(result.top1, result.loss)
        row = epoch_row(state, train, results, lr, weights) | mfu
        state.begin_epoch(row)
        self.record.writer.write("epoch", state.step, **row)
        self.record.progress.say(epoch_line(row, config.train.epochs, self.feed.num_classes))
        self.record.tell(step=state.step, epoch=state.epochs_done, top1=result.top1, weights=weights)
        self.save(best=is_best, wait=state.is_over(config.train))

    def evaluate(self) -> dict[str, Scores]:
        """See ``evaluation.evaluate``."""
        with self.phases.during("evaluating"):
            return evaluate(self.learner, self.feed, self.peers, self.record.progress, self.config, self.state.step)

    def save(self, *, best: bool = False, wait: bool = False) -> None:
        """Publish a checkpoint of this moment, unless it has one. Sync point: once per checkpoint."""
        self._collect()
        state = self.state
        now = (state.step, state.epochs_done)
        if now == self._saved_at:
            with self.phases.during("saving"):
                self.record.checkpoints.finish()
            return
        state.spent = self.phases.work(self._spent_before)
        with self.phases.during("saving"):
            self._publish(best=best, wait=wait)
        self._saved_at = now

    def _publish(self, *, best: bool, wait: bool) -> None:
        state, learner = self.state, self.learner
        learner.refuse_non_finite(state.step)
        if self._check_every:
            check_in_sync(learner.network, self.peers.ranks, self.peers.group)
        payload = learner.state_dict() | {"state": state.state_dict()}
        facts = {"step": state.step, "epochs_done": state.epochs_done, "best": best, "test": state.last_result}
        self.record.save(payload, facts | {"weights": learner.weights}, wait=wait)

    def _mfu(self, images_per_s: float) -> dict[str, float]:
        """Model FLOP utilisation, where it is known: not of smaller images, which cost less."""
        small = self.state.epochs_done < self.config.augment.small_epochs
        return {} if small else self.learner.work.facts(images_per_s)

    def _last_lr(self) -> float:
        return self.lr(self.state.step - 1, self.config.optim.lr)

    def _count_update(self, *_: Any) -> None:
        self.state.skipped_steps -= 1

    def _collect(self) -> None:
        """Add what the ranks have counted since the last time. Sync point: per log row, checkpoint and epoch.

        Raises:
            NonFiniteLoss: a loss up to here was NaN or infinite on some rank.
        """
        self.peers.agreement.conclude()
        sums = sum_over_ranks(self.tally.take())
        self.state.count(sums, self.training.lap())
