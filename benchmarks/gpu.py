"""On a GPU: the whole trainer beside a bare loop, SENet18 against the GPU's peak, and recipes to their end.

    .venv/bin/python benchmarks/gpu.py                                    # about 8 minutes
    .venv/bin/python benchmarks/gpu.py --recipe configs/fast.yaml data.source=imagefolder data.folder=DIR
    .venv/bin/python benchmarks/gpu.py --recipe configs/cifar10.yaml --usual data.source=imagefolder data.folder=DIR
    .venv/bin/python benchmarks/gpu.py --device cpu --model resnet20 --images 512 --cases bf16:64 --pairs 1   # a try

The first: SENet18 on random 32x32 images, by configs/cifar10.yaml, one process, two epochs; each case is a precision
(off is TF32) and a batch. The trainer and ``loops.py bare`` take turns, in processes of their own; images/s of a run is
the median over its log rows. FLOP/s are those of forward and backward pass (torch.utils.flop_counter), beside the
GPU's peak and beside what a product of two matrices in that precision reaches. Then, of the last case that is bf16:
what train.compile and train.deterministic=false gain, and the seconds that compiling adds to a start: one run each, so
printed only. No repetition is begun that --limit-s has no time for. With --recipe: ``time_to_accuracy.py`` of that
recipe, and with --usual of usual.yaml for as many epochs, on the same images. Appends rows to results.jsonl, which name
the GPU; a try on a CPU without --recipe appends none.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, gflop_per_image, images_per_s, lay_store, measured, medians, ratios, record, spread, train
from loops import BLOCK, SIZES
from results import RATIO

from senet import REPOSITORY

PEAKS = {
    "H200 NVL": (836, 418), "H200": (989, 495), "H100 NVL": (835, 418), "H100 PCIe": (756, 378), "H100": (989, 495),
    "B200": (2250, 1125), "A100": (312, 156), "L40S": (362, 183), "L40": (181, 90.5), "L4": (121, 60),
    "A10": (125, 62.5), "V100": (125, None), "T4": (65, None), "RTX 4090": (165, 83), "RTX 3090": (71, 36),
}  # fmt: skip
"""TFLOP/s of 16-bit and of TF32 matrix products, dense, by words in the GPU's name; the first that fit. From NVIDIA's
data sheets, and for GeForce from its architecture whitepapers (16 bits with sums in fp32). V100 and T4: fp16 only."""
SPEED = ["augment.cutout=8", "checkpoint.every_steps=100000"]  # no checkpoint falls into the steps that are timed


class Case:
    """A precision and a batch."""

    def __init__(self, text: str, args: argparse.Namespace) -> None:
        self.amp, _, batch = text.partition(":")
        self.batch, self.args = int(batch), args
        self.name = f"{'tf32' if self.amp == 'off' and args.device == 'cuda' else self.amp}, batch {batch}"
        self.ours: list[float] = []
        self.bare: list[float] = []

    def train(self, stored: list[str], *more: str) -> tuple[float, float]:
        """One run of the trainer: images/s, and the seconds that are not of training at that speed."""
        args, steps = self.args, self.args.images // self.batch
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as run_dir:
            rows = train(
                Path(run_dir), "configs/cifar10.yaml", *stored, *SPEED, f"model.name={args.model}", "train.epochs=2",
                f"train.global_batch_size={self.batch}", f"train.amp={self.amp}", f"train.device={args.device}",
                f"log.every_steps={max(1, min(20, steps // 4))}", *more, *args.options,
            )  # fmt: skip
        speed = images_per_s(rows)
        return speed, time.perf_counter() - began - 2 * steps * self.batch / speed

    def loop(self, name: str, data_root: str) -> list[float]:
        """Seconds of each step of a loop."""
        args = self.args
        options = [f"--model={args.model}", f"--batch={self.batch}", f"--data-root={data_root}"]
        options += [
            f"--amp={self.amp}",
            f"--device={args.device}",
            f"--steps={max(5 * BLOCK[args.device], args.images // self.batch)}",
        ]
        seconds: list[float] = measured("loops.py", name, *options)["step_s"]
        return seconds[1:]


def peak_tflops(gpu: str, amp: str) -> float | None:
    """By the table; None where it has no such GPU or precision, or for a part of a GPU (MIG)."""
    name = next((name for name in PEAKS if re.search(rf"\b{name}\b", gpu)), "")
    if not name or "MIG" in gpu or (amp == "bf16" and name in ("V100", "T4")):
        return None
    return PEAKS[name][amp == "off"]


def measure(args: argparse.Namespace, gpu: str | None) -> None:
    """Everything but recipes."""
    began = time.perf_counter()
    cases = [Case(text, args) for text in args.cases.split(",")]
    with tempfile.TemporaryDirectory() as data_root:
        stored = lay_store(Path(data_root), args.images)
        products = {case.amp: case.loop("matmul", data_root) for case in cases}
        for pair in range(args.pairs):
            started = time.perf_counter()
            for case in cases:
                case.ours.append(case.train(stored)[0])
                case.bare.append(case.batch / statistics.median(case.loop("bare", data_root)))
            now = time.perf_counter()
            speeds = "; ".join(f"{c.name}: {c.ours[-1]:.0f} and {c.bare[-1]:.0f}" for c in cases)
            print(f"{pair + 1}: {speeds} images/s, {now - began:.0f} s so far", flush=True)
            if pair + 1 < args.pairs and now - began + (now - started) > args.limit_s:
                print(f"--limit-s={args.limit_s} leaves no time for more than {pair + 1} of {args.pairs} repetitions")
                break
        report(cases, products, args, gpu)
        if any(case.amp == "bf16" for case in cases) and time.perf_counter() - began < args.limit_s:
            gains([case for case in cases if case.amp == "bf16"][-1], stored)
    print(f"{time.perf_counter() - began:.0f} s in all")


def report(cases: list[Case], products: dict[str, list[float]], args: argparse.Namespace, gpu: str | None) -> None:
    """The table, and rows of each case: the ratio, the share of the peak, the share of a matrix product."""
    from senet.models.zoo import build_model

    gflop = gflop_per_image(build_model(args.model, num_classes=10), 32)
    own = f", {args.model}" * (args.model != "senet18")
    print(f"\n{'':18} {'trainer, images/s':28} {'bare loop, images/s':28} {'ratio':22} TFLOP/s")
    for case in cases:
        tflops = [gflop * speed / 1e3 for speed in case.ours]
        over = ratios(case.ours, case.bare)
        print(f"{case.name:18} {spread(case.ours, 0):28} {spread(case.bare, 0):28} {spread(over):22} {spread(tflops)}")
        both = medians(case.ours, case.bare)
        keep(gpu, f"trainer over a bare loop, {case.name}{own}", over, RATIO, images_per_s=both, note=args.note)
        product = 2 * SIZES[args.device] ** 3 / 1e12 / statistics.median(products[case.amp])
        known = args.peak_tflops or peak_tflops(gpu or "", case.amp)
        for of, limit in (("the peak", known), ("a matrix product", product)):
            if limit:
                shares, reached = [100 * each / limit for each in tflops], statistics.median(tflops)
                note = f"{reached:.2f} of {limit:.1f} TFLOP/s; {gflop:.2f} GFLOP an image"
                note = "; ".join(filter(None, [note, args.note]))
                keep(gpu, f"of {of}, {case.name}{own}", shares, "%", digits=1, note=note)
        if not known:
            print(f"{case.name}: the peak of {gpu or 'this CPU'} is not known; --peak-tflops tells it")


def gains(case: Case, stored: list[str]) -> None:
    """What two options gain over the trainer without them: one run each, which is no result."""
    speed, start_s = case.train(stored)
    for option in ("train.deterministic=false", "train.compile=true"):
        other, other_start_s = case.train(stored, option)
        gain = f"{other:.0f} against {speed:.0f} images/s, {other / speed:.2f} times"
        print(f"{option}, {case.name}: {gain}; a start takes {other_start_s - start_s:.1f} s more")


def keep(gpu: str | None, what: str, values: list[float], unit: str, **more: Any) -> None:
    """A row, if it is of a GPU."""
    if gpu:
        record("gpu.py", what, values, unit, gpu=gpu, **more)


def recipes(args: argparse.Namespace) -> None:
    """The recipe, and beside it the usual one for as many epochs."""
    from senet.config.load import load_config

    os.chdir(REPOSITORY)
    given = [*args.options, f"train.device={args.device}"]
    epochs = load_config([args.recipe, *given], 1).train.epochs
    usual = [["benchmarks/usual.yaml", *given, f"train.epochs={epochs}"]] if args.usual else []
    for words in [[args.recipe, *given], *usual]:
        runs = args.runs.resolve() / Path(words[0]).stem
        command = [sys.executable, "benchmarks/time_to_accuracy.py", *words, f"--runs={runs}", f"--note={args.note}"]
        if code := subprocess.run(command, check=False).returncode:
            sys.exit(f"{' '.join(command)} ended with {code}")


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.set_defaults(pairs=3)
    parser.add_argument("options", nargs="*", help="key=value, on top of the recipe")
    parser.add_argument("--device", choices=SIZES, default="cuda", help="cpu: to try this file out")
    parser.add_argument("--model", default="senet18", help="as model.name of train_ddp.py")
    parser.add_argument("--images", type=int, default=51_200, help="of an epoch")
    parser.add_argument("--cases", default="bf16:128,bf16:1024,fp16:1024,off:1024", help="train.amp:batch, ...")
    parser.add_argument("--limit-s", type=float, default=330, help="seconds after which no repetition is begun")
    parser.add_argument("--peak-tflops", type=float, default=0, help="of a GPU that is not in the table")
    parser.add_argument("--recipe", default="", metavar="FILE.yaml", help="train this one to its end instead")
    parser.add_argument("--usual", action="store_true", help="with --recipe: then usual.yaml for as many epochs")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "gpu", help="folder of the recipes' runs")
    args = parser.parse_intermixed_args()
    sys.path.insert(0, str(REPOSITORY))  # for --model=benchmarks.networks:linear
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is visible to torch; --device cpu tries this file out")
    if args.recipe:
        recipes(args)
    else:
        measure(args, torch.cuda.get_device_name() if args.device == "cuda" else None)


if __name__ == "__main__":
    main()
