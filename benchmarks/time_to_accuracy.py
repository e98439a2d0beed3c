"""What accuracy a recipe reaches, and what it takes: epochs, floating-point operations, seconds.

    .venv/bin/python benchmarks/time_to_accuracy.py configs/cifar10.yaml train.epochs=5 [--seeds 1] [--note TEXT]
    .venv/bin/python benchmarks/time_to_accuracy.py ... --curve 54.6,66.3,77.1

Trains the files and options given with seeds 0, 1, ..., one process (or --ranks of them) at a time, and prints a row
for each epoch: PFLOP and seconds of training so far, top-1 of the raw and of the averaged weights, as mean and standard
deviation over the seeds. PFLOP are those of forward and backward pass of every image trained on, a multiplication and
an addition counted as two, by torch.utils.flop_counter: convolutions and matrix products, nothing else (those of Muon
are told besides); seconds are without evaluation. The rows for results.jsonl are of the last epoch, never of the best.
Typed again after an interruption it goes on with the runs in --runs; another recipe needs another folder there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import gflop_per_image, record, train
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from senet import REPOSITORY
from senet.config.load import load_config
from senet.config.options import Config
from senet.models.zoo import build_model
from senet.training.optim import build_optimizer

Row = dict[str, Any]  # of metrics.jsonl


class Point(NamedTuple):
    """Where the runs of all seeds are after an epoch; the first number of each pair a mean, the second a deviation."""

    epoch: int
    pflop: float
    train_s: tuple[float, float]
    test_top1: tuple[float, float]
    ema_top1: tuple[float, float] | None


def images_by_size(config: Config, epochs: Sequence[Row]) -> Counter[int]:
    """How many images were trained on in these epochs, by their size in pixels when they reached the network.

    The trainer leaves out the images that fill no batch; a row's ``step`` counts the updates.
    """
    images = epochs[-1]["step"] // len(epochs) * config.train.global_batch_size  # of each epoch
    small = min(config.augment.small_epochs, len(epochs))
    sizes = {config.augment.small_size: small * images, config.data.image_size: (len(epochs) - small) * images}
    return Counter({size: count for size, count in sizes.items() if count})


def evaluated_on(config: Config) -> str:
    """Which images ``test_top1`` and ``ema_top1`` are of."""
    held = f"{config.data.holdout:,} images held out of the training split" if config.data.holdout else "test split"
    return f"{held} of {config.data.source}"


def flop_of_an_update(model: nn.Module, config: Config) -> int:
    """Of the optimizer: matrix products, that is those of Muon. Counted without computing them."""
    model = copy.deepcopy(model).to("meta")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counter:
        build_optimizer(model, config.optim).step()
    return counter.get_total_flops()


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 of one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def points(config: Config, runs: Sequence[Sequence[Row]], gflop_by_size: Mapping[int, float]) -> list[Point]:
    """One point per epoch.

    Args:
        runs: the rows of each seed's epochs.
    """
    found = []
    for number in range(1, 1 + config.train.epochs):
        now = [run[number - 1] for run in runs]
        images = images_by_size(config, runs[0][:number])
        found.append(
            Point(
                number,
                sum(count * gflop_by_size[size] for size, count in images.items()) / 1e6,
                spread([row["train_s"] for row in now]),
                spread([row["test_top1"] for row in now]),
                spread([row["ema_top1"] for row in now]) if "ema_top1" in now[0] else None,
            )
        )
    return found


def percent(value: tuple[float, float] | None, seeds: int) -> str:
    """``74.86`` or ``74.86 +- 0.21``."""
    if value is None:
        return "-"
    return f"{value[0]:.2f}" + (f" +- {value[1]:.2f}" if seeds > 1 else "")


def show(found: Sequence[Point], seeds: int, curve: Sequence[str]) -> None:
    """The table; ``curve`` is printed beside it, epoch by epoch."""
    known = f" {'known curve':>12}" if curve else ""
    print(f"{'epoch':>5} {'PFLOP':>9} {'seconds':>9} {'test top-1':>15} {'ema top-1':>15}{known}")
    for point in found:
        beside = f" {curve[point.epoch - 1]:>12}" if point.epoch <= len(curve) else ""
        print(
            f"{point.epoch:5} {point.pflop:9.4f} {point.train_s[0]:9.1f} {percent(point.test_top1, seeds):>15} "
            f"{percent(point.ema_top1, seeds):>15}{beside}"
        )


def main() -> None:
    """Train, print, append."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "options", nargs="*", help="YAML files and key=value, as for train_ddp.py; relative to its folder"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs: seeds 0, 1, ...")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "time_to_accuracy", help="folder of runs")
    parser.add_argument("--curve", default="", help="a known curve, top-1 after each epoch: 54.6,66.3,77.1")
    parser.add_argument("--note", default="", help="for the row: what the images are, what else ran")
    args = parser.parse_intermixed_args()
    runs_dir = args.runs.resolve()
    os.chdir(REPOSITORY)  # to which the YAML files are relative
    config = load_config(args.options, args.ranks)
    runs = []
    for seed in range(args.seeds):
        rows = train(runs_dir / f"seed-{seed}", *args.options, f"seed={seed}", ranks=args.ranks)
        runs.append([row for row in rows if row["kind"] == "epoch"])
    trained = build_model_of(config, runs_dir / "seed-0")
    sizes = images_by_size(config, runs[0])
    found = points(config, runs, {size: gflop_per_image(trained, size) for size in sizes})
    show(found, args.seeds, [value.strip() for value in args.curve.split(",") if value.strip()])
    own_pflop = runs[0][-1]["step"] * flop_of_an_update(trained, config) / 1e15
    note = "; ".join(filter(None, [f"last epoch, {evaluated_on(config)}", args.note]))
    recipe = next((Path(each).name for each in args.options if each.endswith(".yaml")), "defaults")
    name, gpu = f"{recipe}, {config.train.epochs} epochs", gpu_of(runs_dir / "seed-0")
    keep(name, [run[-1] for run in runs], found[-1].pflop, own_pflop, note, gpu)


def gpu_of(run_dir: Path) -> str | None:
    """The GPU that a run's last start computed on; None for a CPU."""
    start: dict[str, Any] = json.loads((run_dir / "starts.jsonl").read_text().splitlines()[-1])
    return start["processor"] if start["device"] == "cuda" else None


def keep(name: str, last: Sequence[Row], pflop: float, own_pflop: float, note: str, gpu: str | None) -> None:
    """The rows; ``last`` are those of metrics.jsonl, a seed each."""

    def row(what: str, values: list[float], unit: str, **more: Any) -> None:
        record("time_to_accuracy.py", f"{what}, {name}", values, unit, of="seeds", gpu=gpu, **more)

    row("top-1", [each["test_top1"] for each in last], "%", note=note)
    if "ema_top1" in last[0]:
        row("top-1 of averaged weights", [each["ema_top1"] for each in last], "%", note=note)
    parts = {"more by the optimizer": round(own_pflop, 2)}
    row("forward and backward passes", [pflop], "PFLOP", n=len(last), digits=3, parts=parts)
    row("seconds of training", [each["train_s"] for each in last], "s", digits=0, note=note)


def build_model_of(config: Config, run_dir: Path) -> nn.Module:
    """The network that was trained, with new weights."""
    from senet.inference.network import open_checkpoint

    model = config.model
    return build_model(
        model.name,
        num_classes=len(open_checkpoint(run_dir).manifest["classes"]),
        reduction=model.reduction,
        small_stem=model.small_stem,
        arguments=model.args,
        init_from="",
    )


if __name__ == "__main__":
    main()
