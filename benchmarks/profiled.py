"""What a profile costs: updates while torch.profiler records, and after it, against those of a run without.

    .venv/bin/python benchmarks/profiled.py [--pairs N] [--model resnet20]

One rank trains on the digits at 32x32, batch 64, with a row for each update; updates 30 to 34 are profiled. Each number
is of a pair of runs, one after the other: the median time of these updates, or of updates 45 to 88 (the files are
written by then), over that of the same updates without. Appends rows to results.jsonl. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import arguments, record, train

PARTS = {"while profiled": range(30, 35), "before": range(5, 29), "after": range(45, 89)}


def median_s(rows: Sequence[dict[str, Any]], updates: range) -> float:
    """Of these updates; a row has the seconds of training so far."""
    at = {row["step"]: row["train_s"] for row in rows if row["kind"] == "train"}
    return statistics.median(at[step] - at[step - 1] for step in updates if (step - 1) % 22)  # no evaluation before it


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="resnet20", help="as model.name of train_ddp.py")
    args = parser.parse_args()
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shared = [
            "configs/quickstart.yaml", f"data.root={root / 'data'}", f"model.name={args.model}", "train.device=cpu",
            "train.epochs=4", "train.global_batch_size=64", "train.amp=off", "log.every_steps=1",
        ]  # fmt: skip
        train(root / "first", *shared, "train.epochs=1")  # decodes the images
        for pair in range(args.pairs):
            without = train(root / f"without-{pair}", *shared)
            profiled = train(root / f"with-{pair}", *shared, "log.profile_at=30")
            sizes += [path.stat().st_size for path in (root / f"with-{pair}" / "profile").glob("*.json.gz")]
            for part, updates in PARTS.items():
                found[part].append(100 * median_s(profiled, updates) / median_s(without, updates))
            print(
                f"{pair + 1}: " + ", ".join(f"{part} {ratios[-1]:.1f} %" for part, ratios in found.items()), flush=True
            )
    note = f"{statistics.median(sizes) / 1e6:.2f} MB a trace of 5 updates" + (f"; {args.note}" if args.note else "")
    for part, ratios in found.items():
        target = "<= 102" if part == "after" else None
        more = {"target": target} if target else {}
        what = f"time of an update {part}, of that without, {args.model}"
        record("profiled.py", what, ratios, "%", digits=1, note=note, **more)


if __name__ == "__main__":
    main()
