"""The training loop, in this process with one rank, against reference arithmetic."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.model_selection
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet import REPOSITORY
from senet.data.augment import Preprocess
from senet.data.samplers import ImageData, ResumableSampler
from senet.distributed.agreement import NonFiniteLoss
from senet.distributed.watchdog import Watchdog
from senet.errors import ConfigError
from senet.models.zoo import build_model
from senet.rundir.checkpoint import CheckpointError
from senet.rundir.files import read_json, write_json
from senet.rundir.lease import Lease
from senet.rundir.saving import CheckpointManager
from senet.training.learner import Learner
from senet.training.optim import build_average, build_optimizer
from senet.training.schedule import lr_at
from senet.training.seeds import seed_everything
from senet.training.trainer import Trainer
from tests import networks
from tests.conftest import Once, Train
from tests.harness import CLOCKS, StopAt, checkpoints, differing, payload, rows, status, tiny_config, without_clock
from tests.test_data import write_store

LIGHT = "model.name=tests.networks:no_norm"
"""A fifth of the small run's time, where the network does not matter."""
NO_NORM = (LIGHT, "train.amp=off")


@pytest.fixture
def whole_run(train_here: Train, once: Once) -> Path:
    """The small run to its end, trained once for this file: to be read only."""
    return once("whole_run", train_here)


def test_training_is_the_plain_loop(train_here: Train, digits: ImageData, tmp_path: Path) -> None:
    """The whole trainer against a plain loop of twenty lines, bit for bit."""
    options = (
        "train.amp=off",
        "train.epochs=1",
        "train.clip_norm=1",
        "schedule.warmup_epochs=0.2",
        "schedule.name=cosine",
    )
    train_here(tmp_path / "run", *options)
    config = tiny_config(*options)
    seed_everything(config.seed)
    model = build_model(config.model.name, num_classes=10).to(memory_format=torch.channels_last)
    optimizer, ema = build_optimizer(model, config.optim, fused=True), build_average(model, config.train.ema_decay)
    assert ema is not None
    sampler = ResumableSampler(digits.train, global_batch_size=64, rank=0, world_size=1, seed=config.seed)
    preprocess = Preprocess(
        config.augment, mean=config.data.mean, std=config.data.std, seed=config.seed, device=torch.device("cpu")
    )
    sampler.start_at(0, 0)
    for step, indices in enumerate(sampler):
        images, labels, _ = digits.train[indices]
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config.schedule, lr=config.optim.lr, steps_per_epoch=22, epochs=1)
        logits = model(preprocess.train(images, indices, epoch=0))
        F.cross_entropy(logits, labels, label_smoothing=config.train.label_smoothing).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
    saved = payload(tmp_path / "run")
    assert differing(saved["model"], dict(model.state_dict())) == []
    assert differing(saved["ema"]["model"], dict(ema.module.state_dict())) == []
    with torch.inference_mode():
        logits = model.eval()(preprocess.test(torch.from_numpy(np.array(digits.test.images))))
    [row] = rows(tmp_path / "run", "epoch")
    assert row["test_top1"] == pytest.approx(100 * (logits.argmax(1) == digits.test.labels).float().mean().item())
    assert row["test_loss"] == pytest.approx(F.cross_entropy(logits, digits.test.labels).item(), rel=1e-5)


def test_accumulation_gives_the_same_updates(train_here: Train, tmp_path: Path) -> None:
    for parts in (1, 4):
        train_here(tmp_path / str(parts), *NO_NORM, "train.epochs=1", f"train.accumulate={parts}")
    one, other = (payload(tmp_path / str(parts))["model"] for parts in (1, 4))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_average_is_the_one_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight  # shared by two layers, averaged once
    ema = build_average(model, 0.6)
    assert ema is not None
    expected: dict[str, Tensor] = {}
    for n in range(8):
        for value in model.state_dict().values():
            value.copy_(torch.full_like(value, n * n))
        ema.update_parameters(model)
        decay = min(0.6, (1 + n) / (10 + n))
        for name, value in model.state_dict().items():
            now = copy.deepcopy(value)
            old = expected.get(name, now)
            expected[name] = old * decay + now * (1 - decay) if now.is_floating_point() else now
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_weight_decay_leaves_out_norms_and_biases() -> None:
    model = build_model("tests.networks:tiny_senet", num_classes=10)
    config = tiny_config().optim
    decayed, plain = build_optimizer(model, config).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (config.weight_decay, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in plain["params"]} == {1}
    [everything] = build_optimizer(model, tiny_config("optim.decay_norms_and_biases=true").optim).param_groups
    assert len(everything["params"]) == len(decayed["params"]) + len(plain["params"])


def test_images_kept_on_the_device_change_no_bit(train_here: Train, tmp_path: Path) -> None:
    for resident in ("on", "off"):
        train_here(tmp_path / resident, LIGHT, "train.epochs=1", "data.holdout=100", f"data.resident={resident}")
    one, other = (tmp_path / resident for resident in ("on", "off"))
    assert differing(without_clock(payload(one)), without_clock(payload(other))) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("optim.name=adamw", "optim.lr=0.003", "train.amp=bf16"),
        ("optim.name=muon", "optim.lr=0.05", "model.whiten=true", "augment.alternate_flip=true"),
        ("train.channels_last=false", "train.accumulate=2"),
        (*NO_NORM, "train.amp=fp16"),
        ("model.name=tests.networks:with_dropout", "train.amp=off"),
    ],
)
def test_other_recipes_learn_and_resume_bit_for_bit(
    train_here: Train, tmp_path: Path, options: tuple[str, ...]
) -> None:
    train_here(tmp_path / "whole", *options)
    assert train_here(tmp_path / "parts", *options, stop=StopAt(13)).state == "stopped"
    train_here(tmp_path / "parts", *options)
    assert differing(without_clock(payload(tmp_path / "whole")), without_clock(payload(tmp_path / "parts"))) == []
    losses = [row["train_loss"] for row in rows(tmp_path / "whole", "epoch")]
    assert losses[1] < losses[0]


def test_fp16_counts_the_steps_that_its_scaler_skips(train_here: Train, tmp_path: Path) -> None:
    """The scale halves at each overflow, and 22 steps are too few for it to grow."""
    skipped = train_here(tmp_path, *NO_NORM, "train.amp=fp16", "train.epochs=1").result["skipped_steps"]
    assert payload(tmp_path)["scaler"]["scale"] == 65536.0 * 0.5**skipped
    assert payload(tmp_path)["state"]["skipped_steps"] == skipped


def test_an_overflow_is_skipped_and_not_fatal(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.train_step
    weights: list[Tensor] = []

    def overflow(self: Trainer, *batch: Any) -> None:
        first = self.state.step == 0
        hook = None
        if first:
            hook = self.learner.network.get_submodule("linear").weight.register_hook(lambda g: g * math.inf)
            weights.append(self.learner.network.get_submodule("linear").weight.detach().clone())
        original(self, *batch)
        if hook is not None:
            hook.remove()
            weights.append(self.learner.network.get_submodule("linear").weight.detach().clone())

    monkeypatch.setattr(Trainer, "train_step", overflow)
    summary = train_here(tmp_path, *NO_NORM, "train.amp=fp16", "train.epochs=1")
    assert summary.result["skipped_steps"] >= 1
    assert torch.equal(*weights)


@pytest.mark.parametrize("bad_step", [4, 5, 7, 22])
def test_a_loss_that_is_not_finite_stops_within_a_step_and_publishes_nothing(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_step: int
) -> None:
    original = F.cross_entropy
    calls = {"train": 0}

    def poisoned(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        loss = original(logits, labels, **options)
        if "label_smoothing" in options:
            calls["train"] += 1
            if calls["train"] == bad_step:
                return loss * math.nan
        return loss

    monkeypatch.setattr(F, "cross_entropy", poisoned)
    with pytest.raises(NonFiniteLoss, match=f"loss of step {bad_step} is not finite"):
        train_here(tmp_path, LIGHT, "train.epochs=1", "checkpoint.every_steps=5")
    assert calls["train"] <= bad_step + 1
    assert status(tmp_path)["state"] == "failed"
    assert [int(p.name[5:14]) for p in checkpoints(tmp_path)] == [s for s in (5, 10, 15, 20) if s < bad_step][-3:]


def test_weights_that_are_not_finite_are_never_published(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.train_step

    def spoil(self: Trainer, *batch: Any) -> None:
        original(self, *batch)
        if self.state.step == 5:  # its loss was finite
            self.learner.network.get_parameter("linear.bias").data[0] = math.inf

    monkeypatch.setattr(Trainer, "train_step", spoil)
    with pytest.raises(NonFiniteLoss, match="a weight is not finite after step 5"):
        train_here(tmp_path, LIGHT, "checkpoint.every_steps=5")
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
def test_the_plateau_lowers_the_rate_on_top_of_the_schedule(train_here: Train, tmp_path: Path) -> None:
    options = ("schedule.name=constant", "schedule.plateau=true", "schedule.plateau_patience=0", "optim.lr=1e-12")
    train_here(tmp_path, LIGHT, *options, "schedule.plateau_min_lr=0", "schedule.plateau_factor=0.5", "train.epochs=3")
    # nothing is learned at this rate, so of the losses at least one epoch is no improvement on the best
    losses = [row["train_loss"] for row in rows(tmp_path, "epoch")]
    factor, best = 1.0, math.inf
    for loss in losses:
        factor, best = (factor, loss) if loss < best * (1 - 1e-4) else (factor * 0.5, best)
    assert payload(tmp_path)["state"]["plateau"]["factor"] == factor
    assert factor < 1


@pytest.mark.slow
def test_the_epochs_row_counts_all_its_images_although_it_was_interrupted(
    train_here: Train, whole_run: Path, tmp_path: Path
) -> None:
    for _ in range(4):
        train_here(tmp_path / "parts", stop=StopAt(11))
    train_here(tmp_path / "parts")
    for kind in ("train", "epoch"):
        whole, parts = (
            [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows(path, kind)]
            for path in (whole_run, tmp_path / "parts")
        )
        assert whole == parts


@pytest.mark.slow
@pytest.mark.parametrize("asked", [21, 22, 23, 24])
def test_a_stop_around_the_evaluation_is_resumed_bit_for_bit(
    train_here: Train, once: Once, tmp_path: Path, asked: int
) -> None:
    """22 steps an epoch and two batches of evaluation: before, at the last step, in the evaluation, after it."""
    whole = once("whole_run_of_two_batches", lambda run_dir: train_here(run_dir, "train.eval_batch_size=180"))
    stopped = train_here(tmp_path / "parts", "train.eval_batch_size=180", stop=StopAt(asked))
    assert stopped.state == "stopped"
    assert status(tmp_path / "parts")["state"] == "stopped"
    assert len(checkpoints(tmp_path / "parts")) <= 3
    train_here(tmp_path / "parts", "train.eval_batch_size=180")
    assert differing(without_clock(payload(whole)), without_clock(payload(tmp_path / "parts"))) == []
    assert [row["epoch"] for row in rows(tmp_path / "parts", "epoch")] == [1, 2]


def test_a_finished_run_prints_its_result_again(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train_here(tmp_path, LIGHT)
    capsys.readouterr()
    before = (tmp_path / "metrics.jsonl").read_text()
    again = train_here(tmp_path, LIGHT)
    assert again == first
    assert "finished: " in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_what_changes_numbers_is_refused_on_resume_unless_allowed(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, LIGHT, stop=StopAt(5))
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.1 -> 0\.2") as caught:
        train_here(tmp_path, LIGHT, "optim.lr=0.2", "seed=1")
    assert "seed: 0 -> 1" in str(caught.value)
    assert status(tmp_path)["state"] == "stopped"
    assert (
        train_here(tmp_path, LIGHT, "optim.lr=0.2", "resume.allow_changes=true", "log.every_steps=1").state
        == "finished"
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.global_batch_size=32", "updates per epoch=22, this command gives 44"),
        ("optim.name=adamw", "optim.name=sgd, this command gives adamw"),
        ("optim.decay_norms_and_biases=true", "decay_norms_and_biases=False, this command gives True"),
        ("model.whiten=true", "whiten=False, this command gives True"),
    ],
)
def test_what_has_no_meaning_in_the_middle_of_a_run_is_refused_even_when_changes_are_allowed(
    train_here: Train, tmp_path: Path, option: str, message: str
) -> None:
    train_here(tmp_path, stop=StopAt(5))
    with pytest.raises(ConfigError, match=message):
        train_here(tmp_path, option, "resume.allow_changes=true")
    with pytest.raises(ConfigError, match="was trained with other options"):
        train_here(tmp_path, option)


def test_a_run_that_is_extended_says_how_the_rate_jumps_and_one_that_is_cut_short_is_refused(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("model.name=tests.networks:no_norm", "log.every_steps=1", "train.global_batch_size=256")
    train_here(tmp_path, *model, "train.epochs=2")
    assert "learning rate" not in capsys.readouterr().err
    train_here(tmp_path, *model, "train.epochs=4", "resume.allow_changes=true")
    trained = [row["lr"] for row in rows(tmp_path)]
    start = json.loads((tmp_path / "starts.jsonl").read_text().splitlines()[-1])
    steps = len(trained) // 4 * 2
    assert start["lr"] == pytest.approx([trained[steps - 1], trained[steps]])
    assert trained[steps] > 2 * trained[steps - 1]
    jump = f"the learning rate goes from {trained[steps - 1]:.4g} (update {steps}) to {trained[steps]:.4g}\n"
    assert jump in capsys.readouterr().err
    before = checkpoints(tmp_path)
    for allowed in ("false", "true"):  # nothing could allow it
        with pytest.raises(
            ConfigError, match=r"has 4 epochs done, more than train\.epochs=3; ask for train\.epochs=4 or more"
        ):
            train_here(tmp_path, *model, "train.epochs=3", f"resume.allow_changes={allowed}")
    assert (checkpoints(tmp_path), status(tmp_path)["state"]) == (before, "finished")


@pytest.mark.parametrize(("schedule", "same"), [("constant", True), ("onecycle", False)])
def test_a_finished_run_that_is_extended_is_the_longer_one_where_the_rate_does_not_depend_on_its_length(
    schedule: str, same: bool, train_here: Train, tmp_path: Path
) -> None:
    options = (*NO_NORM, f"schedule.name={schedule}", "train.global_batch_size=256")
    assert train_here(tmp_path / "parts", *options, "train.epochs=2").state == "finished"
    train_here(tmp_path / "parts", *options, "train.epochs=4", "resume.allow_changes=true")
    again = train_here(tmp_path / "parts", *options, "train.epochs=4")  # its options are these now
    train_here(tmp_path / "whole", *options, "train.epochs=4")
    whole, parts = (without_clock(payload(tmp_path / name)) for name in ("whole", "parts"))
    assert (again.state, whole["state"]["step"]) == ("finished", parts["state"]["step"])
    assert (differing(whole, parts) == []) is same
    train_here(tmp_path / "branch", *options, "train.epochs=6", "resume.allow_changes=true",
               f"resume.mode={checkpoints(tmp_path / 'whole')[-1]}")  # fmt: skip
    assert [len(rows(tmp_path / name, "epoch")) for name in ("whole", "branch")] == [4, 2]


def test_a_change_that_leaves_the_rate_alone_marks_no_jump(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, "model.name=tests.networks:no_norm", stop=StopAt(3))
    train_here(
        tmp_path, "model.name=tests.networks:no_norm", "augment.flip=false", "resume.allow_changes=true", stop=StopAt(3)
    )
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["lr"] for start in starts] == [[], []]


@pytest.mark.parametrize("option", ["train.amp=fp16", "train.ema_decay=0", "train.epochs=3", "train.amp=off"])
def test_what_may_be_changed_when_allowed_goes_on(train_here: Train, tmp_path: Path, option: str) -> None:
    train_here(tmp_path, LIGHT, stop=StopAt(35))
    assert train_here(tmp_path, LIGHT, option, "resume.allow_changes=true").state == "finished"


def test_another_network_or_other_classes_are_refused_naming_both(
    train_here: Train, data_root: Path, tmp_path: Path
) -> None:
    train_here(tmp_path, stop=StopAt(5))
    with pytest.raises(ConfigError, match=r"tests\.networks:tiny_senet, this command gives tests\.networks:no_norm"):
        train_here(tmp_path, "model.name=tests.networks:no_norm", "resume.allow_changes=true")
    other = tmp_path / "data"
    shutil.copytree(data_root, other)
    meta = other / "stores/digits-16/meta.json"
    write_json(meta, read_json(meta) | {"classes": [*"0123456789", "ten"]})
    with pytest.raises(ConfigError, match="was trained on 10 classes, the data has 11: without none, with new ten"):
        train_here(tmp_path, f"data.root={other}", "resume.allow_changes=true")


def test_a_network_whose_code_was_edited_is_refused(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(tmp_path, stop=StopAt(5))
    monkeypatch.setattr("tests.networks.tiny_senet", networks.no_norm)
    with pytest.raises(
        ConfigError, match=r"has shape of bn1\.bias=\(8,\), this command gives None; undo the change, or .*dir$"
    ):
        train_here(tmp_path)


def test_allowed_changes_of_the_optimizer_take_effect(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, LIGHT, stop=StopAt(5))
    train_here(tmp_path, LIGHT, "optim.momentum=0.5", "optim.weight_decay=0.25", "resume.allow_changes=true")
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    changes = {"optim.momentum": [0.9, 0.5], "optim.weight_decay": [5e-4, 0.25]}
    assert [start["changed"] for start in starts] == [{}, changes]
    groups = payload(tmp_path)["optimizer"]["param_groups"]
    assert [(group["momentum"], group["weight_decay"]) for group in groups] == [(0.5, 0.25), (0.5, 0.0)]


def test_a_terminal_or_disk_that_goes_away_does_not_end_the_run(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    monkeypatch.setattr("builtins.print", fails(errno.EIO))
    monkeypatch.setattr("senet.rundir.lease.mirror_status", fails(errno.ENOSPC))
    assert train_here(tmp_path, LIGHT).state == "finished"


def test_a_named_file_that_was_removed_since_does_not_stop_the_same_command(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "a", LIGHT, stop=StopAt(7))
    named = f"resume.mode={checkpoints(tmp_path / 'a')[-1]}"
    train_here(tmp_path / "b", LIGHT, named, stop=StopAt(9))
    shutil.rmtree(tmp_path / "a")
    assert train_here(tmp_path / "b", LIGHT, named).state == "finished"


def test_a_refused_start_leaves_no_run_directory_but_what_was_there(train_here: Train, tmp_path: Path) -> None:
    refused = ("data.source=imagefolder", f"data.folder={tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match="no such folder"):
        train_here(tmp_path / "runs/new", *refused)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs/notes").mkdir(parents=True)
    (tmp_path / "runs/notes/mine.txt").touch()
    for name in ("new", "notes"):
        with pytest.raises(ConfigError, match="no such folder"):
            train_here(tmp_path / "runs" / name, *refused)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["notes"]
    assert (tmp_path / "runs/notes/mine.txt").exists()


def test_other_images_are_refused(train_here: Train, data_root: Path, tmp_path: Path) -> None:
    train_here(tmp_path, LIGHT, stop=StopAt(5))
    other = tmp_path / "data"
    shutil.copytree(data_root, other)
    write_store(other / "stores/digits-16", {"train": 1437, "test": 360})
    with pytest.raises(ConfigError, match="the content of the images"):
        train_here(tmp_path, LIGHT, f"data.root={other}")


def test_another_choice_of_held_out_images_is_refused(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*NO_NORM, "train.epochs=1", "data.holdout=100")
    train_here(tmp_path, *options)
    split = sklearn.model_selection.train_test_split
    another = lambda *args, **given: split(*args, **(given | {"random_state": 1}))  # noqa: E731 # another version's
    monkeypatch.setattr(sklearn.model_selection, "train_test_split", another)
    with pytest.raises(ConfigError, match="the choice of the images held out: "):
        train_here(tmp_path, *options)


def test_circumstances_that_change_the_bits_are_warned_about(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(tmp_path, LIGHT, stop=StopAt(5))
    capsys.readouterr()
    train_here(tmp_path, LIGHT, "train.threads_per_rank=2", stop=StopAt(2))
    assert "threads_per_rank was 1, now 2: the run goes on, but not bit for bit" in capsys.readouterr().err


def test_resume_never_and_named_files(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "a", LIGHT, stop=StopAt(7))
    [file] = checkpoints(tmp_path / "a")[-1:]
    with pytest.raises(ConfigError, match=r"resume\.mode=never"):
        train_here(tmp_path / "a", LIGHT, "resume.mode=never")
    with pytest.raises(ConfigError, match="no such file"):
        train_here(tmp_path / "b", LIGHT, "resume.mode=nothing.pt")
    named = f"resume.mode={file}"
    train_here(tmp_path / "b", LIGHT, named, stop=StopAt(9))
    at = status(tmp_path / "b")["step"]
    assert at > status(tmp_path / "a")["step"]
    train_here(tmp_path / "b", LIGHT, named, stop=StopAt(1))  # the same command again: from its own, newer one
    assert status(tmp_path / "b")["step"] > at
    train_here(tmp_path / "a", LIGHT, stop=StopAt(3))
    with pytest.raises(ConfigError, match="is older than"):
        train_here(tmp_path / "a", LIGHT, named)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_its_steps_and_one_warning(
    train_here: Train, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(tmp_path / "parts", stop=StopAt(13))
    checkpoints(tmp_path / "parts")[-1].write_bytes(b"")
    capsys.readouterr()
    train_here(tmp_path / "parts")
    [warning] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]
    assert "checkpoint set aside" in warning
    assert checkpoints(tmp_path / "parts")[-1].name == "step_000000044.g0002.pt"
    assert differing(without_clock(payload(whole_run)), without_clock(payload(tmp_path / "parts"))) == []


@pytest.mark.slow
@pytest.mark.parametrize("left_out", ["nothing", "momentum", "ema counter", "sampler offset"])
def test_the_comparison_notices_what_a_resume_leaves_out(
    train_here: Train, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    train_here(tmp_path / "parts", stop=StopAt(13))
    original = Learner.load_state_dict

    def forgetful(self: Learner, content: dict[str, Any]) -> None:
        if left_out == "momentum":
            content["optimizer"]["state"] = {}
        if left_out == "ema counter":
            content["ema"]["updates"] = torch.tensor(0)
        original(self, content)

    monkeypatch.setattr(Learner, "load_state_dict", forgetful)
    if left_out == "sampler offset":
        monkeypatch.setattr(ResumableSampler, "start_at", lambda self, epoch, _batch: self.set_epoch(epoch))
        monkeypatch.setattr(Trainer, "finish_epoch", _after_as_many_steps(Trainer.finish_epoch))
    train_here(tmp_path / "parts")
    same = differing(payload(whole_run)["model"], payload(tmp_path / "parts")["model"]) == []
    same = same and differing(payload(whole_run)["ema"], payload(tmp_path / "parts")["ema"]) == []
    assert same == (left_out == "nothing")


def _after_as_many_steps(finish: Any) -> Any:
    def finish_epoch(self: Trainer) -> None:
        self.state.step = (self.state.epochs_done + 1) * self.steps_per_epoch  # it trained some batches twice
        finish(self)

    return finish_epoch


def test_disk_trouble_ends_the_run_with_its_reason_after_three_tries(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointManager, "_publish", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train_here(tmp_path, LIGHT, "checkpoint.every_steps=2")
    assert "No space left" in status(tmp_path)["reason"]


def test_what_a_run_directory_holds(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, "log.to=[tensorboard]", stop=StopAt(30))
    train_here(tmp_path, "log.to=[tensorboard]")
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["generation"] for start in starts] == [1, 2]
    assert starts[0]["resumed_from"] == 0
    assert 22 < starts[1]["resumed_from"] < 44
    assert starts[0]["after"] == {}
    ended = starts[1]["after"]
    assert (ended["state"], ended["step"]) == ("stopped", starts[1]["resumed_from"])
    assert datetime.fromisoformat(starts[0]["time"]) <= datetime.fromisoformat(starts[1]["time"])
    assert starts[0]["torch"] == torch.__version__
    assert str(REPOSITORY / "configs/tiny.yaml") in starts[0]["argv"]
    assert "80,536" in (tmp_path / "model.txt").read_text()
    assert "ema_decay: 0.9" in (tmp_path / "config.yaml").read_text()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train, events = (EventAccumulator(str(tmp_path / "tensorboard" / folder)) for folder in ("train", ""))
    train.Reload()
    events.Reload()
    logged = [event.step for event in train.Scalars("loss")]
    assert logged == sorted(set(logged)) == [row["step"] for row in rows(tmp_path)]
    assert events.Graph().node
    assert "final/ema_top1" in events.Tags()["scalars"]


@pytest.mark.parametrize(
    ("network", "layer"), [("with_a_spare_layer", "spare.weight"), ("spares_a_layer_in_training", "linear.weight")]
)
def test_a_layer_that_forward_leaves_out_is_named(network: str, layer: str, train_here: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{layer} gets no gradient"):
        train_here(tmp_path, f"model.name=tests.networks:{network}")


@pytest.mark.slow
def test_a_network_is_compiled_for_the_batches_it_is_trained_on(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, original = [], torch.compile

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        shapes.extend(tuple(each.shape) for each in inputs if isinstance(each, Tensor) and each.ndim == 4)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model: original(model, backend=record))
    train_here(tmp_path, "train.compile=true", "train.accumulate=2", "train.epochs=1")
    images = {shape for shape in shapes if shape[1:] == (3, 16, 16)}
    assert images == {(32, 3, 16, 16)}
    assert all(type(size) is int for shape in shapes for size in shape)  # none is free, as it is for a second size


def test_while_the_last_holder_is_watched_no_rank_takes_the_start_for_stuck(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senet.rundir.owner.WATCH_S", 0.3)
    monkeypatch.setattr("senet.rundir.owner.POLL_S", 0.02)
    monkeypatch.setattr("senet.rundir.lease.POLL_S", 0.02)
    Lease.acquire(tmp_path).close()
    owner = read_json(tmp_path / "owner.json")
    write_json(tmp_path / "owner.json", owner | {"released": False, "host": "elsewhere"})
    phases: list[str] = []
    monkeypatch.setattr(Watchdog, "phase", lambda _, name, alone=False: phases.append(f"{name} {alone}"))
    train_here(tmp_path, LIGHT, "train.epochs=1")
    assert phases.count("watching whether the last holder of run_dir is alive True") > 5
