"""How long a start takes: from exec to the end of the first step, fresh and resumed.

    .venv/bin/python benchmarks/startup.py

train_ddp.py with SENet18 on the digits at 32x32, batch 64, one rank, images decoded before; the first step has ended
when its row is in metrics.jsonl (log.every_steps=1), which is looked for each 5 ms. In each repetition, one after
another: a fresh start, a start that resumes from a checkpoint, ``import torch, torchvision`` in a new interpreter, and
``train_ddp.py --help``. Targets: a start takes at most 3 s more than the imports, --help at most 1 s. Appends rows
to results.jsonl. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, record, train

from senet import REPOSITORY
from senet.distributed.environment import MALLOC

MORE_TARGET, HELP_TARGET = "<= 3", "<= 1"  # seconds
LIMIT_S = 600.0
FRESH, RESUMED, IMPORTS, HELP = "fresh start", "resumed start", "import torch, torchvision", "train_ddp.py --help"


def last_step(run_dir: Path) -> int:
    """Of the rows that are whole; 0 where there are none."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def prepare(run_dir: Path, options: list[str]) -> int:
    """Leave what a run has after the first of its two epochs; the step of that checkpoint."""
    rows = train(run_dir, *options, "checkpoint.keep=100")
    step = next(row["step"] for row in rows if row["kind"] == "epoch")
    for path in (run_dir / "checkpoints").iterdir():
        if not path.name.startswith(f"step_{step:09d}."):
            path.unlink()
    kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= step]
    (run_dir / "metrics.jsonl").write_text("".join(kept))
    return int(step)


def start_s(run_dir: Path, options: list[str], beyond: int) -> float:
    """Seconds from exec to the row of a step beyond this one; then the process is killed."""
    command = [sys.executable, "train_ddp.py", *options, f"run_dir={run_dir}"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | MALLOC, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        while last_step(run_dir) <= beyond:
            if process.poll() is not None or time.perf_counter() - began > LIMIT_S:
                process.kill()
                sys.exit(f"{' '.join(command)}: no step; {process.communicate()[1].decode()}")
            time.sleep(0.005)
        elapsed_s = time.perf_counter() - began
        process.kill()
    return elapsed_s


def command_s(*arguments: str) -> float:
    """Seconds of a whole process of this interpreter."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="senet18", help="as model.name of train_ddp.py")
    args = parser.parse_args()
    times: dict[str, list[float]] = {FRESH: [], RESUMED: [], IMPORTS: [], HELP: []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shared = [
            "configs/quickstart.yaml", f"data.root={root / 'data'}", f"model.name={args.model}", "train.device=cpu",
            "train.epochs=2", "log.every_steps=1",
        ]  # fmt: skip
        saved, beyond = root / "whole", prepare(root / "whole", shared)
        for pair in range(args.pairs):
            times[FRESH].append(start_s(root / f"fresh-{pair}", shared, 0))
            shutil.copytree(saved, root / f"resumed-{pair}")
            times[RESUMED].append(start_s(root / f"resumed-{pair}", shared, beyond))
            times[IMPORTS].append(command_s("-c", "import torch, torchvision"))
            times[HELP].append(command_s("train_ddp.py", "--help"))
            print(f"{pair + 1}: " + ", ".join(f"{name} {values[-1]:.2f}" for name, values in times.items()), flush=True)
    report(times, args.model, args.note)


def report(times: dict[str, list[float]], model: str, note: str) -> None:
    """The rows, each of which is printed."""
    about = "; ".join(filter(None, ["batch 64, 1 rank", note]))
    for name in (FRESH, RESUMED):
        more = [start - imports for start, imports in zip(times[name], times[IMPORTS], strict=True)]
        record("startup.py", f"{name} of {model}, exec to first step", times[name], "s", note=about)
        record("startup.py", f"{name} of {model} beyond the imports", more, "s", target=MORE_TARGET, note=about)
    record("startup.py", IMPORTS, times[IMPORTS], "s", note=note)
    record("startup.py", HELP, times[HELP], "s", target=HELP_TARGET, note=note)


if __name__ == "__main__":
    main()
