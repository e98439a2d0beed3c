"""The loop: fit, train_epoch, train_step, evaluate. Receives built parts, builds none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm

from senet.config.options import Config
from senet.data.augment import Preprocess
from senet.data.samplers import ImageData, ResumableSampler, ShardSampler, load_batches
from senet.distributed.agreement import Agreement, NonFiniteLoss, StopRequested
from senet.distributed.groups import (
    broadcast_buffers,
    check_in_sync,
    gather,
    refuse_other_outputs,
    refuse_unused,
    set_time_limit,
    sum_over_ranks,
)
from senet.distributed.preemption import StopFlag
from senet.distributed.ranks import Ranks
from senet.distributed.timing import OwnTime, Stopwatch
from senet.distributed.watchdog import Watchdog
from senet.rundir.history import judged
from senet.rundir.lease import Lease
from senet.rundir.saving import CheckpointManager
from senet.training.optim import WeightAverage, load_optimizer
from senet.training.schedule import lr_at
from senet.training.scores import Progress, Scores, Tally
from senet.training.seeds import seed_everything
from senet.training.state import TrainState
from senet.training.writer import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    state: Literal["finished", "stopped"]
    step: int
    result: dict[str, Any]


@dataclass
class Trainer:
    """Trains to the end of the schedule or to an agreed stop. Every method is for all ranks at once."""

    config: Config
    ranks: Ranks
    data: ImageData
    preprocess: Preprocess
    model: DistributedDataParallel
    raw_model: nn.Module  # without wrappers: what is evaluated, averaged and saved
    ema: WeightAverage | None
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    autocast: Callable[[], AbstractContextManager[None]]
    sampler: ResumableSampler
    checkpoints: CheckpointManager
    manifest: dict[str, Any]
    agreement: Agreement
    group: dist.ProcessGroup  # on the CPU
    stop: StopFlag
    watchdog: Watchdog
    lease: Lease | None
    writer: Writer
    progress: Progress
    state: TrainState

    def __post_init__(self) -> None:
        self.steps_per_epoch = self.sampler.batches_per_epoch
        self.total_steps = self.steps_per_epoch * self.config.train.epochs
        self.num_classes = len(self.data.classes)
        self.tally = Tally(self.ranks.device)
        self.training = Stopwatch()
        self.own_time = OwnTime(self.model.module, self.ranks.device)
        self._saved_at = (self.state.step, self.state.epochs_done)
        self._check_every = self.config.train.desync_check_every
        self._checked = False  # what the network returns and uses in training
        self.optimizer.register_step_post_hook(self._count_update)

    def fit(self) -> Summary:
        """Train and evaluate until all epochs are done, or until all ranks have agreed to stop and saved.

        Raises:
            NonFiniteLoss: a loss was NaN or infinite; nothing was saved from that step on.
        """
        try:
            while self.state.epochs_done < self.config.train.epochs:
                with self.training:
                    self.train_epoch()
                self.finish_epoch()
        except StopRequested:
            set_time_limit(self.group, self.config.distributed.eval_timeout_s)
            self.save(wait=True)
            return Summary("stopped", self.state.step, self.state.last_result)
        return Summary("finished", self.state.step, self.state.last_result)

    def train_epoch(self) -> None:
        """The batches of this epoch that are still to do; none when it was stopped between its end and its test."""
        epoch = self.state.epochs_done
        first = self.state.step
        done = first - epoch * self.steps_per_epoch
        self.sampler.start_at(epoch, done)
        batches = load_batches(self.data.train, self.sampler, self.ranks.device)
        title = f"epoch {epoch + 1}/{self.config.train.epochs}"
        self.model.train()
        self.own_time.lap_s()
        for images_NHWC, labels_N, indices_N in self.progress.over(
            self.own_time.fetch(batches), title=title, total=self.steps_per_epoch, done=done
        ):
            self.train_step(self._to_device(images_NHWC), self._to_device(labels_N), self._to_device(indices_N), epoch)
            step = self.state.step
            if step == first + 1:  # that one may compile, and has the time of a start
                set_time_limit(self.group, self.config.distributed.step_timeout_s)
                self.watchdog.close()
            is_last = step == (epoch + 1) * self.steps_per_epoch
            if step % self.config.log.every_steps == 0:
                self.log()
            if self._check_every and step % self._check_every == 0:
                self.agreement.conclude()
                check_in_sync(self.raw_model, self.group)  # sync point: once per train.desync_check_every
            if self.agreement.stop_agreed:
                raise StopRequested
            if step % self.config.checkpoint.every_steps == 0 and not is_last:  # the last waits for its evaluation
                self.save()

    def train_step(self, images_NHWC: Tensor, labels_N: Tensor, indices_N: Tensor, epoch: int) -> None:
        """One update from this rank's share of the global batch: uint8 images, labels, and sample indices."""
        train, state = self.config.train, self.state
        seed_everything(self.config.seed, state.step, self.ranks.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(state.step, group["initial_lr"])
        images_NCHW = self.preprocess.train(images_NHWC, indices_N, epoch)
        micro_batches = list(zip(images_NCHW.chunk(train.accumulate), labels_N.chunk(train.accumulate), strict=True))
        total = torch.zeros((), device=self.ranks.device)
        for index, (images, labels) in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            # DDP reduces in the last backward only, and one rank need not; no_sync must cover the forward as well
            with nullcontext() if is_last and self.ranks.world_size > 1 else self.model.no_sync():
                with self.autocast():
                    logits_NK = self.model(images)
                if not self._checked:
                    refuse_other_outputs(logits_NK, (len(labels), self.num_classes))
                loss = F.cross_entropy(logits_NK.float(), labels, label_smoothing=train.label_smoothing)
                total += loss.detach()
                if is_last:
                    self.agreement.observe(state.step + 1, total)
                self.scaler.scale(loss / len(micro_batches)).backward()
            self.tally.add(loss.detach(), logits_NK.detach(), labels)  # stays on the device
        if not self._checked:
            refuse_unused(self.raw_model)
            self._checked = True
        self.agreement.exchange(stop=bool(self.stop))
        if self.scaler.is_enabled():
            self.agreement.settle()
        if train.clip_norm:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), train.clip_norm)
        state.skipped_steps += 1  # taken back by _count_update when the optimizer runs
        self.scaler.step(self.optimizer)  # sync point, fp16 only: found_inf is read here
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.raw_model)
        state.step += 1

    def lr(self, step: int, initial_lr: float) -> float:
        """Of update ``step``, for a group whose rate is ``initial_lr`` at the schedule's factor 1."""
        epochs = self.config.train.epochs
        lr = lr_at(step, self.config.schedule, lr=initial_lr, steps_per_epoch=self.steps_per_epoch, epochs=epochs)
        return lr * self.state.plateau.factor

    def _last_lr(self) -> float:
        return self.lr(self.state.step - 1, self.config.optim.lr)

    def log(self) -> None:
        """A row of what happened since the last one. Sync point: once per log interval."""
        state = self.state
        self._collect()
        since = [now - then for now, then in zip(state.epoch_sums, state.logged_sums, strict=True)]
        state.logged_sums = list(state.epoch_sums)
        scores = Scores.from_sums(since, self.num_classes)
        self._lap()
        elapsed_s, state.logged_s = state.train_s - state.logged_s, state.train_s
        images_per_s = scores.num_images / elapsed_s
        row = scores.row("train") | {"lr": self._last_lr(), "images_per_s": images_per_s, "train_s": state.train_s}
        self.writer.write("train", state.step, **row)
        self.progress.facts(
            f"step {state.step}/{self.total_steps}  loss {scores.loss:.4f}  top-1 {scores.top1:.2f} %  "
            f"lr {row['lr']:.4g}  {images_per_s:.0f} images/s"
        )
        self._tell(step=state.step, epoch=state.epochs_done, images_per_s=round(images_per_s, 1))
        own_s = gather(self.own_time.lap_s(), self.group)
        # with sync_bn a forward pass waits for the slowest rank too
        if not self.config.train.sync_bn and (text := self.own_time.compare(own_s, elapsed_s)):
            log.warning("step %d: %s", state.step, text)

    def finish_epoch(self) -> None:
        """Evaluate, judge the plateau, write the epoch's row, and save."""
        state, config = self.state, self.config
        set_time_limit(self.group, config.distributed.eval_timeout_s)
        self.watchdog.close()
        with self.training:  # a GPU may still be at work on the last step
            self._collect()
        self._lap()
        train = Scores.from_sums(state.epoch_sums, self.num_classes)
        results = self.evaluate()
        lr = self._last_lr()
        if config.schedule.plateau:
            state.plateau.update(train.loss, config.schedule, config.optim.lr)
        state.epochs_done += 1
        row: dict[str, Any] = {"epoch": state.epochs_done, **train.row("train")}
        for name, scores in results.items():
            row |= scores.row(name)
        row |= {"lr": lr, "images_per_s": train.num_images / state.epoch_s, "epoch_s": state.epoch_s}
        row |= {"train_s": state.train_s, "skipped_steps": state.skipped_steps}
        row["weights"] = self._weights
        top1 = results[judged(row)].top1
        is_best = top1 > state.best_top1
        if is_best:
            state.best_top1, state.best_epoch = top1, state.epochs_done
        row |= {"best_top1": state.best_top1, "best_epoch": state.best_epoch}
        state.last_result = row
        self.writer.write("epoch", state.step, **row)
        state.epoch_sums, state.logged_sums = [], []
        state.epoch_s, state.logged_s = 0.0, state.train_s
        self.progress.say(_epoch_line(row, config.train.epochs))
        self._tell(step=state.step, epoch=state.epochs_done, top1=top1, weights=row["weights"])
        self.save(best=is_best, wait=state.epochs_done == config.train.epochs)

    @torch.no_grad()  # not inference_mode: a network may keep what it makes here, a table of positions, for training
    def evaluate(self) -> dict[str, Scores]:
        """Scores of the raw ("test") and the averaged ("ema") weights over the whole test split, each image once.

        Raises:
            RuntimeError: the ranks together saw another number of images than the split holds.
            StopRequested: a rank was asked to stop; the evaluation is left, to be done again on resume.
        """
        models = {"test": self.raw_model} | ({"ema": self.ema.module} if self.ema else {})
        tallies = {name: Tally(self.ranks.device) for name in models}
        for model in models.values():
            broadcast_buffers(model)
            model.eval()
        sampler = ShardSampler(
            len(self.data.test),
            batch_size=self.config.train.eval_batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )
        batches = load_batches(self.data.test, sampler, self.ranks.device)
        for images_NHWC, labels_N, _ in self.progress.over(batches, title="test", total=len(sampler)):
            if len(labels_N):
                images_NCHW = self.preprocess.test(self._to_device(images_NHWC))
                labels_N = self._to_device(labels_N)
                for name, model in models.items():
                    with self.autocast():
                        logits_NK = model(images_NCHW)
                    tallies[name].add(F.cross_entropy(logits_NK.float(), labels_N), logits_NK, labels_N)
            self.agreement.exchange(stop=bool(self.stop))
            if self.agreement.stop_agreed:
                raise StopRequested
        self.agreement.conclude()
        # sync point: once per evaluation and network
        scores = {n: Scores.from_sums(sum_over_ranks(t.take()), self.num_classes) for n, t in tallies.items()}
        for name, result in scores.items():
            if result.num_images != len(self.data.test):
                raise RuntimeError(f"{name}: evaluated {result.num_images} of {len(self.data.test)} images")
        return scores

    def save(self, *, best: bool = False, wait: bool = False) -> None:
        """Publish a checkpoint of this moment, unless it has one. Sync point: once per checkpoint."""
        self._collect()
        state = self.state
        now = (state.step, state.epochs_done)
        if now == self._saved_at:
            self.checkpoints.finish()
            return
        self._lap()
        model = self.raw_model
        # a loss can be finite and its gradient not: what it left in the weights is never published
        if not torch.isfinite(get_total_norm([p.detach() for p in model.parameters() if p.requires_grad])):
            raise NonFiniteLoss(f"a weight is not finite after step {state.step}; nothing was saved from it on")
        if self._check_every:
            check_in_sync(model, self.group)
        payload = {
            "model": model.state_dict(),
            "ema": {"model": self.ema.module.state_dict(), "updates": self.ema.n_averaged} if self.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "state": state.state_dict(),
        }
        facts = {"step": state.step, "epochs_done": state.epochs_done, "best": best, "test": state.last_result}
        facts["weights"] = self._weights
        self.checkpoints.save(payload, self.manifest | facts, first=self.writer.sync, wait=wait)
        self._tell(save_s=round(self.checkpoints.write_s, 3))  # the last one to end
        self._saved_at = now

    def restore(self, payload: dict[str, Any]) -> None:
        """Continue from a checkpoint's payload, the same on every rank."""
        self.raw_model.load_state_dict(payload["model"])
        load_optimizer(self.optimizer, payload["optimizer"])
        if payload["scaler"]:  # empty unless the run was in fp16
            self.scaler.load_state_dict(payload["scaler"])
        if self.ema is not None:
            if payload["ema"]:
                self.ema.module.load_state_dict(payload["ema"]["model"])
                self.ema.n_averaged.copy_(payload["ema"]["updates"])
            else:  # switched on with resume.allow_changes: the average begins here
                self.ema.module.load_state_dict(payload["model"])
        self.state = TrainState.from_state_dict(payload["state"])
        self._saved_at = (self.state.step, self.state.epochs_done)

    @property
    def _weights(self) -> Literal["raw", "averaged"]:
        """Those that count as the result at this step."""
        return "averaged" if self.ema is not None and self.ema.counts else "raw"

    def _lap(self) -> None:
        """Add the seconds since the last call to the time spent training."""
        elapsed_s = self.training.lap()
        self.state.train_s += elapsed_s
        self.state.epoch_s += elapsed_s

    def _count_update(self, *_: Any) -> None:
        self.state.skipped_steps -= 1

    def _collect(self) -> None:
        """Move what the ranks have counted since last time into the state. Sync point: per log row, save and epoch.

        Raises:
            NonFiniteLoss: a loss up to here, on some rank.
        """
        self.agreement.conclude()
        sums = sum_over_ranks(self.tally.take())
        before = self.state.epoch_sums or [0] * len(sums)
        self.state.epoch_sums = [a + b for a, b in zip(before, sums, strict=True)]
        self.state.logged_sums = self.state.logged_sums or [0] * len(sums)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.ranks.device, non_blocking=True)

    def _tell(self, **facts: Any) -> None:
        if self.lease is not None:
            self.lease.update(**facts)


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    ema = f", ema {row['ema_loss']:.4f} {row['ema_top1']:.2f} %" if "ema_loss" in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}  train {row['train_loss']:.4f} {row['train_top1']:.2f} %  "
        f"test {row['test_loss']:.4f} {row['test_top1']:.2f} %{ema}  lr {row['lr']:.4g}  "
        f"{row['images_per_s']:.0f} images/s  {row['epoch_s']:.0f} s"
    )
