"""What bf16 and channels_last gain over fp32 and contiguous, through the whole trainer.

    .venv/bin/python benchmarks/precision.py [--pairs 10]

SENet18 on the digits at 32x32, batch 128, one rank with all cores, one epoch of 11 updates; the two variants alternate,
because machines drift. images/s of a run is the median over its updates, the first two left out; the ratio is taken
pair by pair. Prints a table and appends a row to results.jsonl. Nothing else should run meanwhile.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import arguments, images_per_s, medians, ratios, record, spread, train
from results import RATIO

SHARED = [
    "configs/quickstart.yaml", "train.epochs=1", "train.global_batch_size=128", "log.every_steps=1",
    "log.to=[]", "checkpoint.every_steps=1000",
]  # fmt: skip
VARIANTS = {
    "fp32, contiguous": ["train.amp=off", "train.channels_last=false"],
    "bf16, channels_last": ["train.amp=bf16", "train.channels_last=true"],
}


def main() -> None:
    """Measure, print, append."""
    args = arguments(__doc__).parse_args()
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as data_root:
        for pair in range(args.pairs):
            for name, options in VARIANTS.items():
                with tempfile.TemporaryDirectory() as run_dir:
                    rows = train(Path(run_dir), *SHARED, *options, f"data.root={data_root}")
                speeds[name].append(images_per_s(rows))
            print(f"pair {pair + 1}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in speeds.items()))
    slow, fast = speeds.values()
    gains = ratios(fast, slow)
    for name, values in speeds.items():
        print(f"{name:22} {spread(values, 1)} images/s")
    print(f"{'ratio':22} {spread(gains)}")
    what = "bf16, channels_last over fp32, contiguous"
    record("precision.py", what, gains, RATIO, images_per_s=medians(fast, slow), note=args.note)


if __name__ == "__main__":
    main()
