"""How much of the machine reaches the network: the whole trainer beside a bare loop, the usual script, and two peers.

    ./launch.sh setup benchmarks && .venv/bin/python benchmarks/throughput.py

SENet18 on the digits at 32x32, batch 128, one process with all cores of the CPU. In each repetition every variant runs
once, in a process of its own, one after another, for one epoch (11 steps). Its images/s are those of its median step,
the first two left out; ratios are taken pair by pair.

ours        train_ddp.py with configs/cifar10.yaml in bf16: crop, flip, cutout, averaged weights, metrics, TensorBoard;
            a row is written after each step instead of each 20th. No checkpoint falls into the steps that are timed.
a bare loop, the usual script, Lightning, Accelerate: see loops.py; what is missing is said so, and left out

Options of the trainer may follow: train.ema_decay=0 leaves out the averaged weights, which none of the others has.
The step's GFLOP are counted by torch, and stand beside what a bf16 product of 2048 x 2048 matrices reaches. Prints a
table and appends a row to results.jsonl for each ratio. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path

from common import arguments, gflop_per_image, images_per_s, measured, medians, ratios, record, spread, train
from results import RATIO

WARM_UP = 2  # steps
LOOPS = {
    "bare": "a bare loop", "baseline": "the usual script", "lightning": "Lightning", "accelerate": "Accelerate"
}  # fmt: skip
TARGETS = {"bare": ">= 0.98", "baseline": ">= 2.5", "lightning": ">= 1", "accelerate": ">= 1"}
PRODUCT_GFLOP = 2 * 2048**3 / 1e9


def ours(model: str, batch: int, data_root: str, options: list[str]) -> float:
    """images/s of one run of the trainer."""
    with tempfile.TemporaryDirectory() as run_dir:
        rows = train(
            Path(run_dir), "configs/cifar10.yaml", "data.source=digits", f"data.root={data_root}", "train.epochs=1",
            f"train.global_batch_size={batch}", f"model.name={model}", "train.amp=bf16", "train.device=cpu",
            "log.every_steps=1", *options,
        )  # fmt: skip
        return images_per_s(rows, WARM_UP)


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--model", default="senet18", help="as model.name of train_ddp.py")
    parser.add_argument("--peers", default=",".join(LOOPS), help="only these beside the trainer")
    parser.add_argument("options", nargs="*", help="key=value, on top of configs/cifar10.yaml")
    args = parser.parse_intermixed_args()
    chosen = args.peers.split(",")
    if unknown := set(chosen) - LOOPS.keys():
        parser.error(f"--peers: {', '.join(sorted(unknown))} is none of {', '.join(LOOPS)}")
    missing = [peer for peer in chosen if peer in ("lightning", "accelerate") and not find_spec(peer)]
    peers = [peer for peer in chosen if peer not in missing]
    speeds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    products: list[float] = []
    with tempfile.TemporaryDirectory() as data_root:
        options = [f"--model={args.model}", f"--batch={args.batch}", f"--data-root={data_root}"]
        for pair in range(args.pairs):
            for name, values in speeds.items():
                if name == "ours":
                    values.append(ours(args.model, args.batch, data_root, args.options))
                else:
                    step_s = measured("loops.py", name, *options, tuned=name != "baseline")["step_s"]
                    values.append(args.batch / statistics.median(step_s[WARM_UP:]))
            products.append(PRODUCT_GFLOP / statistics.median(measured("loops.py", "matmul", *options)["step_s"]))
            print(f"{pair + 1}: " + ", ".join(f"{n} {v[-1]:.1f}" for n, v in speeds.items()), "images/s", flush=True)
    report(speeds, products, args)
    for peer in missing:
        print(f"{LOOPS[peer]:16} not installed: ./launch.sh setup benchmarks")


def report(speeds: dict[str, list[float]], products: list[float], args: argparse.Namespace) -> None:
    """The table, and a row for each of the others."""
    from senet.models.zoo import build_model

    gflop = gflop_per_image(build_model(args.model, num_classes=10), 32)
    print(f"\n{'':16} {'images/s':28} {'GFLOP/s':28} ours / this")
    special = [*args.options, *sorted({args.model, f"batch {args.batch}"} - {"senet18", "batch 128"})]
    for name, values in speeds.items():
        gains = ratios(speeds["ours"], values)
        gflops = spread([gflop * value for value in values], 0)
        print(f"{LOOPS.get(name, name):16} {spread(values, 1):28} {gflops:28} {spread(gains) * (name != 'ours')}")
        if name != "ours":
            what = ", ".join([f"trainer over {LOOPS[name]}", *special])
            both = medians(speeds["ours"], values)
            record("throughput.py", what, gains, RATIO, target=TARGETS[name], images_per_s=both, note=args.note)
    print(f"{'matmul':16} {'':28} {spread(products, 0):28}")
    shares = [100 * share for share in ratios([gflop * value for value in speeds["ours"]], products)]
    note = "; ".join(filter(None, [f"{gflop:.2f} GFLOP an image", args.note]))
    record("throughput.py", ", ".join(["of a bf16 matrix product", *special]), shares, "%", digits=0, note=note)


if __name__ == "__main__":
    main()
