"""What a profile costs: updates while torch.profiler records, and after it, against those before it.

    .venv/bin/python benchmarks/profiled.py [--pairs N] [--model resnet20]

One rank with one thread trains on the digits at 32x32, batch 16, in this process; updates 30 to 34 are profiled. Each
number is of one run: the median of the processor time of updates 30 to 34, or of 60 to 88 (the files are written by
then), over that of updates 10 to 28. The same with updates 60 to 88 of a run without a profile, as a control. Appends
rows to results.jsonl.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import arguments, record

BEFORE, PARTS = range(10, 29), {"while profiled": range(30, 35), "after": range(60, 89)}


def cpu_s(run_dir: Path, *options: str) -> list[float]:
    """Of this process at the end of each update."""
    from senet.config.load import load_config
    from senet.distributed.preemption import StopFlag
    from senet.training.run import run
    from senet.training.trainer import Observer, Trainer

    ends = [0.0]

    def observe(_: Trainer) -> Observer:
        return lambda: ends.append(time.process_time())

    argv = [*options, f"run_dir={run_dir}"]
    run(load_config(argv), argv, StopFlag(), observe=observe)
    return ends


def ratio(ends: Sequence[float], updates: range) -> float:
    """In percent."""
    of, before = ([ends[step] - ends[step - 1] for step in steps] for steps in (updates, BEFORE))
    return 100 * statistics.median(of) / statistics.median(before)


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="resnet20", help="as model.name of train_ddp.py")
    args = parser.parse_args()
    found: dict[str, list[float]] = {part: [] for part in (*PARTS, "without a profile")}
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shared = [
            "configs/quickstart.yaml", f"data.root={root / 'data'}", f"model.name={args.model}", "train.device=cpu",
            "train.epochs=1", "train.global_batch_size=16", "train.amp=off", "train.threads_per_rank=1",
            "checkpoint.every_steps=1000", "log.to=[]",
        ]  # fmt: skip
        for pair in range(args.pairs):
            found["without a profile"].append(ratio(cpu_s(root / f"without-{pair}", *shared), PARTS["after"]))
            ends = cpu_s(root / f"with-{pair}", *shared, "log.profile_at=30")
            sizes += [path.stat().st_size for path in (root / f"with-{pair}" / "profile").glob("*.json.gz")]
            for part, updates in PARTS.items():
                found[part].append(ratio(ends, updates))
            print(
                f"{pair + 1}: " + ", ".join(f"{part} {ratios[-1]:.1f} %" for part, ratios in found.items()), flush=True
            )
    note = f"{args.model}; {statistics.median(sizes) / 1e6:.2f} MB a trace of 5 updates" + (
        f"; {args.note}" if args.note else ""
    )
    for part, ratios in found.items():
        what = f"CPU time of an update over before, {part}"
        more = {"target": "<= 102"} if part == "after" else {}
        record("profiled.py", what, ratios, "%", digits=1, note=note, **more)


if __name__ == "__main__":
    main()
