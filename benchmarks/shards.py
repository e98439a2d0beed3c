"""What ``train.shards`` costs against DistributedDataParallel, through the whole trainer.

    .venv/bin/python benchmarks/shards.py [--pairs 6] [--ranks 1,2] [--note TEXT] [key=value ...]

SENet18 by configs/cifar10.yaml, batch 128, on random 32x32 images: shards of 0, 2, 4 and 8 on one rank, where smaller
parts of a batch and the sums of their gradients cost time; and shards of 0 and 2 on two ranks, where both compute the
same parts, and only the exchange between the ranks differs. A round runs every case once, each in processes of its own,
in turn forwards and backwards, because machines drift; images/s of a run is the median over its updates but the first
two, and a ratio is taken round by round. Options of the trainer may follow. Prints a table and appends a row to
results.jsonl per comparison. Nothing else should run meanwhile.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

from common import arguments, images_per_s, lay_store, medians, ratios, record, spread, train
from results import RATIO

OPTIONS = ["configs/cifar10.yaml", "train.amp=bf16", "train.epochs=1", "log.every_steps=1", "log.to=[]"]
UNSAVED = ["checkpoint.every_steps=1000000", "train.desync_check_every=0"]
CASES = [(1, 0), (1, 2), (1, 4), (1, 8), (2, 0), (2, 2)]  # ranks, shards
TARGETS = {(1, 4): ">= 0.95", (1, 8): ">= 0.88", (2, 2): ">= 0.97"}


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("options", nargs="*", help="key=value, on top of configs/cifar10.yaml")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks")
    parser.add_argument("--images", type=int, default=1920, help="of a run; 1,920 are 15 updates")
    args = parser.parse_intermixed_args()
    cases = [case for case in CASES if str(case[0]) in args.ranks.split(",")]
    speeds: dict[tuple[int, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as data_root:
        options = [*OPTIONS, *UNSAVED, *lay_store(Path(data_root), args.images), *args.options]
        for number in range(args.pairs):
            for ranks, shards in reversed(cases) if number % 2 else cases:
                with tempfile.TemporaryDirectory() as run_dir:
                    rows = train(Path(run_dir), *options, f"train.shards={shards}", ranks=ranks)
                speeds[ranks, shards].append(images_per_s(rows))
            said = ", ".join(f"{ranks} x {shards}: {speeds[ranks, shards][-1]:.1f}" for ranks, shards in cases)
            print(f"round {number + 1}, images/s of ranks x shards: {said}", flush=True)
    print(f"\n{'ranks':>5} {'shards':>6} {'images/s':>26} {'ratio to shards=0':>26}")
    for ranks, shards in cases:
        gains = ratios(speeds[ranks, shards], speeds[ranks, 0])
        print(f"{ranks:5} {shards:6} {spread(speeds[ranks, shards], 1):>26} {spread(gains):>26}", flush=True)
        if shards:
            case = f"train.shards={shards} over 0, {ranks} rank{'s' * (ranks > 1)}, batch 128"
            what = ", ".join([case, *args.options])
            both = medians(speeds[ranks, shards], speeds[ranks, 0])
            target = TARGETS.get((ranks, shards))
            record("shards.py", what, gains, RATIO, target=target, images_per_s=both, note=args.note)


if __name__ == "__main__":
    main()
