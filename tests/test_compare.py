"""A comparison says what numpy and scipy say of the runs, and no more than chance allows."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from senet.compare.__main__ import main
from senet.compare.comparison import MOST_GROUPS, Comparison, compare
from senet.compare.intervals import PAIRED, WELCH, differences, mean_of
from senet.compare.table import text, verdict
from senet.config.load import load_config, to_yaml
from senet.errors import ConfigError
from senet.rundir.files import write_json
from tests.browser import browser, needs_browser, open_page
from tests.conftest import Train
from tests.harness import StopAt

RATES = {0.05: [96.0, 97.5, 96.5, 97.0, 96.2], 0.1: [97.1, 98.4, 97.7, 97.9, 97.5], 0.2: [95.0, 99.0, 96.0, 98.0, 94.0]}


def write_run(
    folder: Path,
    *options: str,
    top1: Sequence[float],
    averaged: Sequence[float] = (),
    state: str = "finished",
    reason: str = "",
    start: dict[str, Any] | None = None,
) -> Path:
    """A run directory as the trainer leaves it, with these accuracies of its epochs."""
    folder.mkdir(parents=True)
    config = load_config(["configs/quickstart.yaml", f"run_dir={folder}", *options])
    (folder / "config.yaml").write_text(to_yaml(config))
    rows, best, best_epoch = [], -1.0, 0
    for epoch, value in enumerate(top1, start=1):
        row = {"kind": "epoch", "step": 10 * epoch, "epoch": epoch, "test_loss": 1 / epoch, "test_top1": value}
        row |= {"train_loss": 1.0, "train_top1": 50.0, "weights": "averaged" if averaged else "raw"}
        if averaged:
            row |= {"ema_top1": averaged[epoch - 1], "ema_loss": 0.9 / epoch}
        result = averaged[epoch - 1] if averaged else value
        if result > best:
            best, best_epoch = result, epoch
        rows.append(row | {"best_top1": best, "best_epoch": best_epoch, "train_s": 1.0, "images_per_s": 9.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {
        "resumed_from": 0,
        "time": "2026-11-26",
        "torch": "2.14",
        "commit": "abc",
        "amp": "off",
        "world_size": 1,
        "device": "cpu",
    }
    (folder / "starts.jsonl").write_text(json.dumps(facts | (start or {})) + "\n")
    write_json(folder / "owner.json", {})
    write_json(folder / "status.json", {"state": state, "reason": reason})
    return folder


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """Three rates, five seeds."""
    for rate, results in RATES.items():
        for seed, result in enumerate(results):
            cell = tmp_path / "rates" / f"optim.lr={rate}_seed={seed}"
            write_run(cell, f"optim.lr={rate}", f"seed={seed}", top1=[50.0, result + 0.5, result])
    return tmp_path / "rates"


def half_width(values: Sequence[float], confidence: float) -> float:
    """Of Student's interval for the mean, by the quantile of t that the incomplete beta function gives."""
    n = len(values)
    x = special.betaincinv((n - 1) / 2, 0.5, 1 - confidence)
    t = np.sqrt((n - 1) * (1 - x) / x)
    return float(t * np.sqrt(np.var(values, ddof=1) / n))


def test_means_deviations_and_intervals_equal_those_of_the_formulas(rates: Path) -> None:
    found = compare([rates])
    assert [each.options for each in found.groups] == [{"optim.lr": rate} for rate in RATES]
    for means, results in zip(found.means, RATES.values(), strict=True):
        assert means["last"] == (pytest.approx(sum(results) / 5), pytest.approx(np.std(results, ddof=1)), 5)
        assert means["best"].mean == pytest.approx(sum(results) / 5 + 0.5)
    results = list(RATES.values())
    assert [(each.first, each.second) for each in found.differences] == [(0, 1), (0, 2), (1, 2)]
    for each in found.differences:
        apart = np.subtract(results[each.second], results[each.first])
        wide = half_width(apart.tolist(), 1 - 0.05 / 3)
        assert (each.method, each.n, each.mean) == (PAIRED, (5,), pytest.approx(apart.mean()))
        assert (each.low, each.high) == (pytest.approx(apart.mean() - wide), pytest.approx(apart.mean() + wide))
    assert [verdict(each) for each in found.differences] == ["2 is better", *["no difference shown"] * 2]


def test_groups_of_other_seeds_are_compared_by_welch(tmp_path: Path) -> None:
    samples = {0.05: {0: 90.0, 1: 91.0, 2: 93.0}, 0.1: {2: 95.0, 5: 96.5, 6: 95.5, 7: 99.0}}
    for rate, of in samples.items():
        for seed, result in of.items():
            write_run(tmp_path / f"{rate} {seed}", f"optim.lr={rate}", f"seed={seed}", top1=[result])
    [each] = compare([tmp_path]).differences
    a, b = (list(of.values()) for of in samples.values())
    parts = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)  # Welch-Satterthwaite
    x = special.betaincinv(freedom / 2, 0.5, 0.05)
    wide = np.sqrt(freedom * (1 - x) / x * sum(parts))
    assert (each.method, each.n) == (WELCH, (3, 4))
    assert each.low == pytest.approx(np.mean(b) - np.mean(a) - wide)
    assert each.high == pytest.approx(np.mean(b) - np.mean(a) + wide)
    assert each.better == 1


def draws(kind: str, generator: np.random.Generator) -> list[dict[int, float]]:
    """Three options that make no difference: seed -> accuracy of each."""
    shared = generator.normal(0, 1, 5)
    groups = []
    for number in range(3):
        first = 0
        values = 95 + shared + generator.normal(0, 0.5, 5)
        if kind == "other seeds":
            first, values = 5 * number, 95 + generator.normal(0, 1 + number, 5)
        if kind == "few images":  # 100 of them: one differs by 1 point, and most differences are equal
            values = np.round(99 + generator.normal(0, 0.6, 5))
        groups.append({first + seed: float(value) for seed, value in enumerate(values)})
    return groups


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["same seeds", "other seeds", "few images"])
def test_of_1000_tables_without_a_difference_no_more_than_one_in_twenty_shows_one(kind: str) -> None:
    generator = np.random.default_rng(0)
    pairs = [(0, 1), (0, 2), (1, 2)]
    wrong = sum(
        any(each.better is not None for each in differences(draws(kind, generator), pairs)) for _ in range(1000)
    )
    assert wrong <= 1000 * 0.05 + 2 * np.sqrt(1000 * 0.05 * 0.95)


def test_a_difference_that_is_there_is_found() -> None:
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(20):
        groups = draws("same seeds", generator)
        groups[1] = {seed: value + 4 for seed, value in groups[1].items()}  # sd of a difference: 0.7
        found += [each.better for each in differences(groups, [(0, 1), (0, 2), (1, 2)])] == [1, None, 1]
    assert found >= 18


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({0: 90.0, 1: 91.0, 2: 92.0}, {0: 91.0, 1: 92.0, 2: 93.0}, "no spread: nothing can be said"),
        ({0: 90.1, 1: 91.2}, {0: 90.1, 1: 91.2}, "equal in each run"),
        ({0: 90.0, 1: 90.0}, {2: 95.0, 3: 95.0}, "no spread: nothing can be said"),
    ],
)
def test_where_nothing_can_be_said_nothing_is_called_better(
    first: dict[int, float], second: dict[int, float], said: str
) -> None:
    [each] = differences([first, second], [(0, 1)])
    assert (each.better, each.low, verdict(each)) == (None, None, said)


def test_one_run_has_a_mean_and_no_deviation() -> None:
    assert mean_of([]) == (None, None, 0)
    assert mean_of([90.0]) == (90.0, None, 1)


def test_runs_that_have_not_finished_are_named_and_not_counted(rates: Path) -> None:
    for state, reason in (("failed", "the loss is nan"), ("stopped", "SIGUSR2"), ("running", "")):
        write_run(rates / state, "optim.lr=0.4", "seed=1", top1=[10.0], state=state, reason=reason)
    (rates / "waits").mkdir()
    write_json(rates / "waits" / "owner.json", {})
    (rates / "optim.lr=0.1_seed=4" / "metrics.jsonl").write_text("")
    write_json(rates / "sweep.json", {"cells": {"waits": {}, "never": {}, "optim.lr=0.1_seed=0": {}}})
    write_run(rates / "never" / "slurm" / "code" / "tests" / "run", top1=[0.0])
    found = compare([rates])
    assert found.title == "finished: 14 of 20 runs; groups: 4, by optim.lr"
    assert [of["last"].n for of in found.means] == [5, 4, 5, 0]
    said = "\n".join(found.notes)
    for line in (
        f"not counted, failed (the loss is nan): {rates / 'failed'}",
        f"not counted, stopped (SIGUSR2): {rates / 'stopped'}",
        f"not counted, killed: {rates / 'running'}",
        f"not counted, not begun: {rates / 'never'}, {rates / 'waits'}",
        f"not counted, finished, without a row of an epoch: {rates / 'optim.lr=0.1_seed=4'}",
        "runs that failed are missing",
    ):
        assert line in said
    shown = text(found, 80)
    assert re.search(r"^4  optim.lr=0.4 +0  - +-$", shown, re.MULTILINE)
    assert re.findall(r"^(\d) - (\d) ", shown, re.MULTILINE) == [("2", "1"), ("3", "1"), ("3", "2")]
    assert len(found.differences) == 3
    assert "groups of fewer than two runs, of which nothing can be said: 4" in found.notes


def test_a_finished_run_that_was_sent_again_counts(rates: Path) -> None:
    sent = rates / "optim.lr=0.1_seed=0" / "slurm"
    sent.mkdir()
    write_json(sent / "job.json", {"job": "7", "cluster": "slurm", "submitted": 1.0})
    assert compare([rates]).counts == {"found": 15, "finished": 15}


def test_a_run_is_counted_once_however_it_is_named_and_its_repeats_never(rates: Path, tmp_path: Path) -> None:
    later = {"time": "2026-11-27"}
    repeat = write_run(
        tmp_path / "again", "optim.lr=0.1", "seed=0", "train.threads_per_rank=1", top1=[1.0], start=later
    )
    (rates / "link").symlink_to(repeat)
    found = compare([rates, rates / "optim.lr=0.1_seed=0", tmp_path / "again"])
    assert [of["last"].n for of in found.means] == [5, 5, 5]
    assert found.means[1]["last"].mean == pytest.approx(np.mean(RATES[0.1]))
    assert found.notes == [f"not counted, since a run with the same options and seed is there: {rates / 'link'}"]


def test_only_options_that_change_the_numbers_make_groups(tmp_path: Path) -> None:
    for number, options in enumerate(
        (
            ["checkpoint.keep=1", "log.every_steps=3", "data.root=/a"],
            ["model.name=resnet20"],
            ["schedule.name=multistep", "schedule.milestones=[1,2]"],
            ["seed=1"],
        )
    ):
        write_run(tmp_path / str(number), *options, top1=[90.0])
    found = compare([tmp_path])
    assert list(found.groups[0].options) == ["model.name", "schedule.name", "schedule.milestones"]
    assert [each.name for each in found.groups] == [
        "model.name=resnet20, schedule.name=onecycle, schedule.milestones=[]",
        "model.name=senet18, schedule.name=multistep, schedule.milestones=[1, 2]",
        "model.name=senet18, schedule.name=onecycle, schedule.milestones=[]",
    ]
    assert [len(each.runs) for each in found.groups] == [1, 1, 2]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("data.holdout=0", "data.holdout=100"),
        ("data.source=cifar10", "data.source=cifar100"),
        (
            "data.source=imagefolder data.folder=/a data.splits.test=dev",
            "data.source=imagefolder data.folder=/a data.splits.test=val",
        ),
        ("data.source=imagefolder data.folder=/a", "data.source=imagefolder data.folder=/b"),
    ],
)
def test_groups_on_different_images_are_not_compared(tmp_path: Path, first: str, second: str) -> None:
    for seed in (0, 1):
        for images, shift in ((first, 0.0), (second, 9.0)):
            for rate in (0.05, 0.1):
                options = (*images.split(), f"optim.lr={rate}", f"seed={seed}")
                top1 = [80 + shift + seed * rate * 9]
                write_run(tmp_path / f"{shift} {rate} {seed}", *options, top1=top1)
    found = compare([tmp_path])
    assert [(each.first, each.second) for each in found.differences] == [(0, 1), (2, 3)]
    assert found.images == ("test or held-out" if "holdout" in second else "test")
    assert found.notes == ["groups that were scored on different images are not compared with each other"]


def test_both_weights_are_shown_and_the_result_is_compared(tmp_path: Path) -> None:
    for seed, (raw, averaged) in enumerate([(90.0, 95.0), (91.0, 94.0)]):
        both = {"top1": [raw + 3, raw], "averaged": [averaged - 4, averaged]}
        write_run(tmp_path / str(seed), f"seed={seed}", **both)
        write_run(tmp_path / f"other {seed}", f"seed={seed}", "optim.lr=0.2", **both)
    found = compare([tmp_path])
    assert {name: of.mean for name, of in found.means[0].items()} == {
        "last": 94.5, "best": 94.5, "last_raw": 90.5, "best_raw": 93.5, "last_averaged": 94.5, "best_averaged": 94.5,
    }  # fmt: skip
    assert list(found.columns.values()) == ["last raw", "best raw", "last averaged", "best averaged"]
    assert "averaged weights, as each run reports" in found.method[0]


def test_one_group_is_the_base_of_all_comparisons_if_it_is_named(rates: Path) -> None:
    pairs = [(each.first, each.second) for each in compare([rates], against=["optim.lr=0.1"]).differences]
    assert pairs == [(1, 0), (1, 2)]
    for same in ("optim.lr=0.10", "optim.lr = 1e-1", "lr=.1"):
        assert [(each.first, each.second) for each in compare([rates], against=[same]).differences] == pairs
    for none in ("optim.lr=7", "lr=", "seed=0", "optim.lr"):
        with pytest.raises(ConfigError, match=rf"--against {none} fits 0 groups and must fit one of: optim.lr=0.05; "):
            compare([rates], against=[none])


def test_a_group_is_named_by_what_its_options_are_as_one_types_them(tmp_path: Path) -> None:
    for seed in (0, 1):
        for number, options in enumerate((
            ("model.args.width=32", "schedule.name=multistep", "schedule.milestones=[1,2]", "model.name=a:b"),
            ("model.args.width=64", "augment.flip=true", "model.name=a:b"),
        )):  # fmt: skip
            write_run(tmp_path / f"{number} {seed}", *options, f"seed={seed}", top1=[90.0 + number + seed])
    for words in (["width=32"], ["model.args.width=32"], ["milestones=[1, 2]"], ["flip=no", "schedule=multistep"]):
        assert [(each.first, each.second) for each in compare([tmp_path], against=words).differences] == [(0, 1)]
    with pytest.raises(ConfigError, match="fits 0 groups"):
        compare([tmp_path], against=["width=32", "flip=true"])


def test_what_else_differs_between_the_runs_is_said(tmp_path: Path) -> None:
    changed = {"changed": {"optim.lr": [0.1, 0.2]}, "resumed_from": 20, "torch": "2.10"}
    changed |= {"commit": f"{'ab' * 20}+"}
    write_run(tmp_path / "a", "seed=0", top1=[90.0], start=changed)
    write_run(tmp_path / "b", "seed=1", top1=[91.0])
    write_run(tmp_path / "c", "seed=2", top1=[91.0])
    assert compare([tmp_path]).notes == [
        "commit differs between the runs: ababababab+ (1), abc (2)",
        "torch differs between the runs: 2.10 (1), 2.14 (2)",
        f"options were changed on resume, those of the last start are shown: {tmp_path / 'a'}",
        f"began from a checkpoint of another run: {tmp_path / 'a'}",
    ]


def test_a_folder_without_finished_runs_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", top1=[1.0], state="failed")
    with pytest.raises(ConfigError, match="of 1 runs none has finished"):
        main([str(tmp_path)])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal_with_many_options_too(rates: Path, width: int) -> None:
    many = ("model.name=se_resnet20", "schedule.name=cosine", "optim.momentum=0.8", "train.label_smoothing=0.2")
    for seed in (0, 1):
        write_run(rates / f"other {seed}", *many, f"seed={seed}", top1=[95.0, 96.0 + seed], averaged=[1.0, 2.0 + seed])
    lines = text(compare([rates]), width).splitlines()
    assert max(map(len, lines)) <= max(width, 70)  # the numbers themselves take 70
    assert all(word in "".join(" ".join(lines).split()) for word in many)


def test_of_many_pairs_only_those_that_differ_are_shown(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (9, 5))
    for number, seed in np.ndindex(9, 5):
        top1 = [float(90 + (number == 3) * 5 + noise[number, seed])]
        write_run(tmp_path / f"{number} {seed}", f"optim.lr=0.{number + 1}", f"seed={seed}", top1=top1)
    found = compare([tmp_path])
    assert (len(found.differences), len(found.shown_pairs)) == (36, 8)
    lines = text(found, 120).splitlines()
    first = [line.split()[0] for line in lines if line.endswith(" is better")]
    assert first == ["4", "4", "4", "5", "6", "7", "8", "9"]
    assert "28 pairs without a difference that can be shown are left out here" in " ".join(lines)
    assert not [line for line in lines if line.endswith("no difference shown")]


def test_csv_and_json_hold_the_numbers_of_the_table(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(rates), "--csv"]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["optim.lr"] for row in found] == ["0.05", "0.1", "0.2"]
    assert [row["seeds"] for row in found] == ["0 1 2 3 4"] * 3
    for row, results in zip(found, RATES.values(), strict=True):
        assert float(row["last_std"]) == pytest.approx(np.std(results, ddof=1))
    assert main([str(rates), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [each["options"] for each in content["groups"]] == [{"optim.lr": rate} for rate in RATES]
    assert [(each["first"], each["second"], each["better"]) for each in content["differences"]] == [
        (1, 2, 2),
        (1, 3, None),
        (2, 3, None),
    ]


def test_of_a_pair_it_is_said_how_many_runs_have_no_partner(rates: Path) -> None:
    for seed in (2, 3, 4):
        status = rates / f"optim.lr=0.05_seed={seed}" / "status.json"
        write_json(status, {"state": "failed", "reason": "x"})
    found = compare([rates])
    assert [(each.method, each.n, each.left_out) for each in found.differences] == [
        *((PAIRED, (2,), 3), (PAIRED, (2,), 3), (PAIRED, (5,), 0)),
    ]
    assert "paired, 2 of 5  " in text(found, 120)


def test_intervals_of_many_pairs_are_those_of_each_alone() -> None:
    generator = np.random.default_rng(2)
    groups = [{seed: float(generator.normal(90, 1)) for seed in range(generator.integers(2, 6))} for _ in range(12)]
    groups += [{seed + 100: value for seed, value in of.items()} for of in groups]  # these share no seed with those
    pairs = [(first, second) for second in range(24) for first in range(second)]
    together = differences(groups, pairs)
    assert {each.method for each in together} == {PAIRED, WELCH}
    for pair, each in zip(pairs, together, strict=True):
        [alone] = differences(groups, [pair], among=len(pairs))
        assert (each.low, each.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


@pytest.mark.parametrize("count", [MOST_GROUPS, MOST_GROUPS + 1])
def test_of_many_groups_each_is_compared_with_the_best_alone(tmp_path: Path, count: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (count, 3))
    for number, seed in np.ndindex(count, 3):
        top1 = [float(90 + 5 * (number == 7) + noise[number, seed])]
        write_run(tmp_path / f"{number} {seed}", f"optim.lr={number + 1}", f"seed={seed}", top1=top1)
    found = compare([tmp_path])
    pairs = count * (count - 1) // 2
    assert found.among == pairs  # the best was chosen by the results
    assert len(found.differences) == (pairs if count == MOST_GROUPS else count - 1)
    assert len([each for each in found.differences if 7 in (each.first, each.second)]) == count - 1
    said = "of more than 30 groups each is compared with the best alone (8)"
    assert any(note.startswith(said) for note in found.notes) == (count > MOST_GROUPS)
    assert compare([tmp_path], against=["lr=3"]).among == count - 1


def test_the_best_epoch_is_compared_only_if_asked_for(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(rates), "--score", "best"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "points of accuracy: best epoch" in shown
    assert "the best epoch was chosen by the images it is scored on" in shown.lower()


@pytest.mark.slow
def test_runs_of_the_trainer_are_compared_and_a_stopped_one_is_not_counted(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results: dict[float, list[float]] = {}
    for rate in (0.01, 0.1):
        for seed in (0, 1):
            run_dir = tmp_path / f"lr={rate}_seed={seed}"
            summary = train_here(run_dir, f"optim.lr={rate}", f"seed={seed}", "train.epochs=1", "train.amp=off")
            results.setdefault(rate, []).append(summary.result["test_top1"])
    train_here(tmp_path / "stopped", "optim.lr=0.1", "seed=2", "train.epochs=1", "train.amp=off", stop=StopAt(3))
    capsys.readouterr()
    assert main([str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [each["scores"]["last_raw"]["mean"] for each in content["groups"] if each["runs"]] == [
        pytest.approx(np.mean(of)) for of in results.values()
    ]
    assert (content["found"], content["finished"]) == (5, 4)


def test_the_page_escapes_what_comes_from_files_and_has_each_figure(rates: Path, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    for seed in (0, 1):
        write_run(rates / f"{hostile[:8]}{seed}", f"model.name=a.b:{'c'}", f"seed={seed}", top1=[90.0, 91 + seed])
        config = rates / f"{hostile[:8]}{seed}" / "config.yaml"
        config.write_text(config.read_text().replace("a.b:c", hostile))
    assert main([str(rates), "--page", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img ") == 4
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not [word for word in ("http:", "https:", "//", "url(") if word in re.sub('base64,[^"]*', "", page)]
    again = tmp_path / "again.html"
    assert main([str(rates), "--page", str(again)]) == 0
    assert again.read_bytes() == (tmp_path / "page.html").read_bytes()


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_the_page_on_a_desktop_and_on_a_phone(rates: Path, tmp_path: Path) -> None:
    for number in range(4):
        many = (
            f"schedule.peak_at=0.{number + 1}",
            f"train.label_smoothing=0.{number}",
            "model.name=se_wide_resnet50_2",
        )
        for seed in (0, 1):
            write_run(rates / f"more {number} {seed}", *many, f"seed={seed}", top1=[90.0 + seed, 91 + number * seed])
    page = tmp_path / "page.html"
    assert main([str(rates), "--page", str(page)]) == 0
    with browser(tmp_path / "profile") as driver:
        for width in (1280, 390):
            assert open_page(driver, page, width) == 4


def test_a_page_that_cannot_be_written_is_refused_before_a_run_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--page .*/none/page.html: no such folder"):
        main([str(tmp_path / "no runs"), "--page", str(tmp_path / "none" / "page.html")])
    with pytest.raises(ConfigError, match=r"--page /sys/page.html: /sys cannot be written \(.+\); see that it can "):
        main([str(tmp_path / "no runs"), "--page", "/sys/page.html"])


def test_a_page_is_a_file_that_a_browser_opens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--page .*page.txt: .* name a file that ends in .html"):
        main([str(tmp_path), "--page", str(tmp_path / "page.txt")])


def test_groups_without_any_finished_run_and_more_than_twelve_are_drawn(tmp_path: Path) -> None:
    from senet.compare.pictures import draw
    from senet.report.figures import to_svg

    for number in range(14):
        state = "finished" if number else "failed"
        for seed in (0, 1):
            top1 = [80.0, 90 + number * seed / 10]
            write_run(
                tmp_path / f"{number} {seed}",
                f"optim.lr={number + 1}",
                f"seed={seed}",
                top1=top1[: 1 + seed],
                state=state,
            )
    drawings = draw(compare([tmp_path], against=["optim.lr=2.0"]))
    assert drawings.keys() == {"bands_accuracy", "bands_loss", "results", "differences"}
    assert all(to_svg(drawing.figure) for drawing in drawings.values())
    assert len(drawings["bands_accuracy"].figure.axes[0].get_lines()) == 12


def test_bands_are_the_mean_and_one_deviation_at_the_epochs_that_all_runs_have(rates: Path) -> None:
    from senet.report.curves import bands

    found: Comparison = compare([rates])
    [first, *_] = found.groups
    runs = list(first.runs.values())
    longer = dataclasses.replace(runs[0], epochs=[*runs[0].epochs, runs[0].epochs[-1] | {"epoch": 4}])
    [axes] = bands({"a": [longer, *runs[1:]]})["bands_accuracy"].axes
    [line], [band] = axes.get_lines(), axes.collections
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([50.0, np.mean(RATES[0.05]) + 0.5, np.mean(RATES[0.05])])
    edges = np.asarray(band.get_paths()[0].vertices)
    last = edges[edges[:, 0] == 3][:, 1]
    middle, wide = np.mean(RATES[0.05]), np.std(RATES[0.05], ddof=1)
    assert (last.min(), last.max()) == (pytest.approx(middle - wide), pytest.approx(middle + wide))
