"""What bf16 and channels_last gain over fp32 and contiguous, through the whole trainer.

    .venv/bin/python benchmarks/precision.py [pairs]

SENet18 on the digits at 32x32, batch 128, one rank with all cores, one epoch of 11 updates; the two variants alternate,
because machines drift. images/s of a run is the median over its updates, the first two left out; the ratio is taken
pair by pair. Prints a table and appends a row to RESULTS.md. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = [
    "configs/quickstart.yaml", "train.epochs=1", "train.global_batch_size=128", "log.every_steps=1",
    "log.tensorboard=false", "checkpoint.every_steps=1000",
]  # fmt: skip
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}  # as launch.sh
VARIANTS = {
    "fp32, contiguous": ["train.amp=off", "train.channels_last=false"],
    "bf16, channels_last": ["train.amp=bf16", "train.channels_last=true"],
}


def images_per_s(options: list[str], data_root: str) -> float:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as run_dir:
        command = [sys.executable, "train_ddp.py", *SHARED, *options, f"run_dir={run_dir}", f"data.root={data_root}"]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, env=os.environ | MALLOC)
        rows = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["images_per_s"] for row in rows if row["kind"] == "train" and row["step"] > 2)


def main(pairs: int) -> None:
    """Measure, print, append."""
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as data_root:
        for pair in range(pairs):
            for name, options in VARIANTS.items():
                speeds[name].append(images_per_s(options, data_root))
            print(f"pair {pair + 1}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in speeds.items()))
    slow, fast = speeds.values()
    ratios = sorted(b / a for a, b in zip(slow, fast, strict=True))
    for name, values in speeds.items():
        print(f"{name:22} {statistics.median(values):7.1f} images/s  ({min(values):.1f} to {max(values):.1f})")
    print(f"{'ratio':22} {statistics.median(ratios):7.2f}           ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    row = (
        f"| precision.py | bf16 + channels_last over fp32 + contiguous, whole trainer, batch 128, 1 rank | "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); medians "
        f"{statistics.median(slow):.0f} and {statistics.median(fast):.0f} images/s | {pairs} pairs | "
        f"{psutil.cpu_count()} cores, {torch.cpu.get_capabilities()['cpu_name']} "
        f"({'with' if torch.cpu.get_capabilities().get('amx_bf16') else 'without'} AMX) | "
        f"torch {torch.__version__}, Python {platform.python_version()} | {datetime.now(UTC):%Y-%m-%d} |\n"
    )
    with (REPOSITORY / "benchmarks" / "RESULTS.md").open("a") as file:
        file.write(row)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
