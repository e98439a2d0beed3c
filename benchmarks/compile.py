"""What train.compile gains on a CPU, and what it adds to the start.

    .venv/bin/python benchmarks/compile.py [--pairs 3] [--amp bf16,off] [--note TEXT] [key=value ...]

SENet18 by configs/cifar10.yaml on random 32x32 images, batch 128, one rank with all cores. A pair is a run without and
one with train.compile, each in a process of its own, the latter with nothing compiled before. images/s of a run is the
median over its updates but the first two. What a run takes beyond its updates (imports, the compiler, evaluation) is
its start; added to the start is what that of the compiled run takes longer. Prints, per precision, both and after how
many seconds of training the start is paid back, and appends a row to results.jsonl for each of the first two. Options
of the trainer may follow. Nothing else should run meanwhile.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from common import arguments, images_per_s, lay_store, medians, ratios, record, spread, train
from results import RATIO

BATCH = 128
OPTIONS = [
    "configs/cifar10.yaml", "train.epochs=1", "log.every_steps=1", "log.to=[]", "train.device=cpu",
    f"train.global_batch_size={BATCH}", "checkpoint.every_steps=1000000", "train.desync_check_every=0",
]  # fmt: skip


def one_run(options: list[str], images: int) -> tuple[float, float]:
    """images/s of a run, and the seconds that it took beyond its updates at this speed."""
    with tempfile.TemporaryDirectory() as run_dir, tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        began = time.perf_counter()
        speed = images_per_s(train(Path(run_dir), *OPTIONS, *options))
        return speed, time.perf_counter() - began - images / speed


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("options", nargs="*", help="key=value, on top of configs/cifar10.yaml")
    parser.add_argument("--amp", default="bf16,off", help="precisions, as train.amp")
    parser.add_argument("--steps", type=int, default=12, help="updates of a run")
    args = parser.parse_intermixed_args()
    images = BATCH * args.steps
    with tempfile.TemporaryDirectory() as data_root:
        stored = lay_store(Path(data_root), images)
        for amp in args.amp.split(","):
            runs: dict[str, list[tuple[float, float]]] = {"false": [], "true": []}
            for _ in range(args.pairs):
                for compiled, values in runs.items():
                    options = [*stored, f"train.amp={amp}", f"train.compile={compiled}", *args.options]
                    values.append(one_run(options, images))
            (speeds, starts), (compiled_speeds, compiled_starts) = (list(zip(*r, strict=True)) for r in runs.values())
            gains = ratios(compiled_speeds, speeds)
            added_s = [with_it - without for with_it, without in zip(compiled_starts, starts, strict=True)]
            saved = 1 - 1 / statistics.median(gains)  # seconds, of each second of training without it
            after = f"after {statistics.median(added_s) / saved:.0f} s" if saved > 0 else "never"
            print(f"amp {amp}: {spread(gains)} times the images/s, {spread(added_s, 1)} s added; paid back {after}")
            what = ", ".join(["train.compile", f"amp {amp}", *args.options])
            both = medians(compiled_speeds, speeds)
            record("compile.py", f"{what}, over without", gains, RATIO, images_per_s=both, note=args.note)
            record("compile.py", f"{what}, added to the start", added_s, "s", digits=1, note=args.note)


if __name__ == "__main__":
    main()
