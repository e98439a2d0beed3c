"""What more ranks on one machine gain, through the whole trainer; the cores are shared among the ranks.

    .venv/bin/python benchmarks/scaling.py [--pairs 10] [--ranks 1,2,4] [--only "global batch 128"] [--note TEXT]

SENet18 by configs/cifar10.yaml on random 32x32 images: 1, 2 and 4 ranks at a fixed global batch (128 and 512), and at a
fixed batch per rank (128). A round runs every case once, each in processes of its own, in turn forwards and backwards,
because machines drift; cases of more ranks than cores only in the first --crowded rounds. images/s of a run is the
median over its updates, the first one of 512 images or two of 128 left out; the ratio to one rank is taken round by
round. A second rank adds no cores here: a ratio of 1 says that sharing the work gains as much as summing the gradients
costs. Options of the trainer may follow (model.name=..., for a try). Prints a table and appends a row to results.jsonl
per comparison. Nothing else should run meanwhile. Where the time goes: step_parts.py. More machines than one: ring.py.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from common import arguments, images_per_s, lay_store, medians, ratios, record, spread, train
from results import RATIO

from senet.distributed.devices import cores

SHARED = ["configs/cifar10.yaml", "train.amp=bf16", "train.epochs=1", "log.every_steps=1", "log.to=[]"]
UNSAVED = ["checkpoint.every_steps=1000000", "train.desync_check_every=0"]
GLOBAL_BATCHES = (128, 512)
PER_RANK = 128
TARGETS = {"2 ranks over 1, global batch 128": ">= 0.97", "2 ranks over 1, global batch 512": ">= 1.05"}


class Case(NamedTuple):
    """How many ranks share a batch of how many images."""

    ranks: int
    batch: int


def comparisons(ranks: list[int]) -> dict[str, list[Case]]:
    """What is compared with its first case, that of the fewest ranks."""
    fixed = {f"global batch {batch}": [Case(count, batch) for count in ranks] for batch in GLOBAL_BATCHES}
    return fixed | {f"batch per rank {PER_RANK}": [Case(count, count * PER_RANK) for count in ranks]}


def measure(cases: list[Case], extra: list[str], *, rounds: int, crowded: int, images: int) -> dict[Case, list[float]]:
    """images/s of each case in each round that it took part in."""
    available = cores()
    speeds: dict[Case, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as data_root:
        stored = lay_store(Path(data_root), images)
        for number in range(rounds):
            here = [case for case in cases if case.ranks <= available or number < crowded]
            for case in reversed(here) if number % 2 else here:
                options = [*SHARED, *UNSAVED, *extra, *stored, f"train.global_batch_size={case.batch}"]
                with tempfile.TemporaryDirectory() as run_dir:
                    rows = train(Path(run_dir), *options, ranks=case.ranks)
                speeds[case].append(images_per_s(rows, skip=max(1, 256 // case.batch)))
            said = ", ".join(f"{case.ranks} x {case.batch // case.ranks}: {speeds[case][-1]:.1f}" for case in here)
            print(f"round {number + 1}, images/s: {said}", flush=True)
    return speeds


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("options", nargs="*", help="key=value, on top of configs/cifar10.yaml")
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks to compare, the fewest first")
    parser.add_argument("--only", default="", help="the comparisons with this in their name")
    parser.add_argument("--crowded", type=int, default=2, help="rounds with more ranks than cores")
    parser.add_argument("--images", type=int, default=2048, help="of a run; 2,048 are 4 updates of 512")
    args = parser.parse_intermixed_args()
    if args.images < 2 * max(GLOBAL_BATCHES):
        parser.error(f"--images={args.images} leaves no second update of {max(GLOBAL_BATCHES)}; use 1024 or more")
    compared = comparisons([int(count) for count in args.ranks.split(",")])
    compared = {name: cases for name, cases in compared.items() if args.only in name}
    cases = list(dict.fromkeys(case for group in compared.values() for case in group))
    speeds = measure(cases, args.options, rounds=args.pairs, crowded=args.crowded, images=args.images)
    print(f"\n{'compared':20} {'ranks':>5} {'n':>3} {'images/s':>26} {'ratio to the first':>26}")
    for name, (first, *others) in compared.items():
        print(f"{name:20} {first.ranks:5} {len(speeds[first]):3} {spread(speeds[first], 1):>26}")
        for case in others:
            if not speeds[case]:
                continue
            n = len(speeds[case])
            gains = ratios(speeds[case], speeds[first][:n])
            print(f"{name:20} {case.ranks:5} {n:3} {spread(speeds[case], 1):>26} {spread(gains):>26}", flush=True)
            what = ", ".join([f"{case.ranks} ranks over {first.ranks}", name, *args.options])
            both = medians(speeds[case], speeds[first][:n])
            record("scaling.py", what, gains, RATIO, target=TARGETS.get(what), images_per_s=both, note=args.note)


if __name__ == "__main__":
    main()
