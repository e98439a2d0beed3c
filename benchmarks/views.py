"""What W&B, MLflow and the CSV file cost a training that shows its rows there.

    .venv/bin/python benchmarks/views.py

Seconds of the processor in the process of the training, each repetition in a process of its own: until a view is open
for the first time (its library imported, its file made), and for each of 2,000 steps with seven numbers. Offline; what
wandb's own process computes is left out. Appends rows to results.jsonl.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, record

from senet.views.identity import identify
from senet.views.points import Point
from senet.views.services import make_view

STEPS = 2000
VIEWS = ("csv", "mlflow", "wandb")


def once(name: str) -> None:
    """Print the seconds of one repetition: open, and each step."""
    os.environ |= {"WANDB_MODE": "offline"}
    names = ("loss", "top1", "top5", "lr", "images_per_s", "grad_norm", "memory_gb")
    points = [Point(step, float(step), {f"train/{each}": 1 / step for each in names}) for step in range(1, STEPS + 1)]
    with tempfile.TemporaryDirectory() as folder:
        view = make_view(name, Path(folder), identify(Path(folder), trains=True), trains=True)
        began = time.process_time()
        view.open()
        opened = time.process_time()
        view.send(points)
        sent = time.process_time()
        view.close(finished=True)
    print(json.dumps([opened - began, (sent - opened) / STEPS]))


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--of", choices=VIEWS, help="one repetition of this view, in this process")
    given = parser.parse_args()
    if given.of:
        once(given.of)
        return
    for name in VIEWS:
        command = [sys.executable, __file__, "--of", name]
        env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "MLFLOW_"))}
        found = [
            json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
            for _ in range(given.pairs)
        ]
        opened, step = zip(*found, strict=True)
        print(f"{name}: {statistics.median(opened):.2f} s, then {1000 * statistics.median(step):.3f} ms a step")
        record("views.py", f"{name}: to open it", opened, "s", of="starts", digits=2, note=given.note)
        record(
            "views.py",
            f"{name}: each step",
            [1000 * each for each in step],
            "ms",
            of="starts",
            digits=3,
            note=given.note,
        )


if __name__ == "__main__":
    main()
