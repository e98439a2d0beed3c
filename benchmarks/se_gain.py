"""What gates gain: a network with and without them, seed by seed, through the whole trainer.

    .venv/bin/python benchmarks/se_gain.py configs/cifar10.yaml train.epochs=5 --seeds 3
    .venv/bin/python benchmarks/se_gain.py ... data.source=imagefolder data.folder=cifar --note "JPEG re-encoded"

Trains resnet20 and se_resnet20 (or another --plain) in turn, one process at a time, with the files and options given. A
pair begins with the same weights but for the gates, and sees the same images in the same order. Accuracy is that of the
last epoch, of the weights that count as its result; seconds are those of training, without evaluation. Prints a
table and appends rows to results.jsonl. Typed again after an interruption it goes on with the runs in --runs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from common import record
from common import train as run

from senet import REPOSITORY


@dataclass(frozen=True)
class Result:
    """One finished run."""

    top1: float
    train_s: float
    parameters: int
    mflop: float  # of one image's forward pass, a multiplication and an addition counted as two


def train(network: str, seed: int, options: list[str], runs: Path) -> Result:
    """One run in a process of its own; a finished one is only read."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from senet.inference.network import load_trained
    from senet.rundir.history import judged

    run_dir = runs / f"{network}-{seed}"
    rows = run(run_dir, *options, f"model.name={network}", f"seed={seed}")
    last = [row for row in rows if row["kind"] == "epoch"][-1]
    trained = load_trained(run_dir, device="cpu")
    with FlopCounterMode(display=False) as counter:
        trained.model(torch.zeros(1, 3, trained.image_size, trained.image_size))
    return Result(
        last[f"{judged(last)}_top1"],
        last["train_s"],
        sum(p.numel() for p in trained.model.parameters()),
        counter.get_total_flops() / 1e6,
    )


def keep(plain: list[Result], gated: list[Result], name: str, note: str) -> None:
    """The rows."""
    of = f"{name} and se_{name}"
    gains = [g.top1 - p.top1 for p, g in zip(plain, gated, strict=True)]
    times = [g.train_s / p.train_s for p, g in zip(plain, gated, strict=True)]
    record("se_gain.py", f"top-1, {name}", [r.top1 for r in plain], "%", note=note)
    record("se_gain.py", f"top-1, se_{name}", [r.top1 for r in gated], "%", note=note)
    record("se_gain.py", f"gain of the gates, {of}", gains, "points", note=note)
    record("se_gain.py", f"training time over {name}'s", times, "times", note=note)
    for what, unit, of_plain, of_gated in (
        ("size", "parameters", plain[0].parameters, gated[0].parameters),
        ("forward pass of an image", "MFLOP", plain[0].mflop, gated[0].mflop),
    ):
        parts = {name: round(of_plain, 2)}
        record("se_gain.py", f"{what}, se_{name}", [of_gated], unit, n=len(plain), parts=parts, note=note)


def main() -> None:
    """Train, print, append."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "options", nargs="*", help="YAML files and key=value, as for train_ddp.py; relative to its folder"
    )
    parser.add_argument("--plain", default="resnet20", help="the network without gates")
    parser.add_argument("--seeds", type=int, default=3, help="pairs: seeds 0, 1, ...")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "se_gain", help="folder of run directories")
    parser.add_argument("--note", default="", help="for the row: what the images are, what else ran")
    args = parser.parse_intermixed_args()
    results: dict[str, list[Result]] = {args.plain: [], f"se_{args.plain}": []}
    print(f"{'network':22} {'seed':>4} {'top-1':>8} {'seconds':>9} {'parameters':>12} {'MFLOP':>9}")
    for seed in range(args.seeds):
        for network, found in results.items():
            found.append(result := train(network, seed, args.options, args.runs.resolve()))
            print(
                f"{network:22} {seed:4} {result.top1:6.2f} % {result.train_s:9.0f} {result.parameters:12,} "
                f"{result.mflop:9.2f}",
                flush=True,
            )
    keep(*results.values(), args.plain, args.note)


if __name__ == "__main__":
    main()
