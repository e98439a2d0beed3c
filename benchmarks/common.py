"""What the benchmarks share: the trainer in a process of its own, the median of pairs, a row of RESULTS.md."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

if TYPE_CHECKING:
    from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # for the modules that import this one, too
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}  # as launch.sh


def train(run_dir: Path, *options: str, ranks: int = 1) -> list[dict[str, Any]]:
    """Train in processes of their own, with the allocator as ``launch.sh`` sets it; the rows of metrics.jsonl.

    Args:
        options: YAML files and ``key=value``, as for ``train_ddp.py``; files relative to the repository.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, "train_ddp.py", *options, f"run_dir={run_dir}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | ALLOCATOR, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def images_per_s(rows: Sequence[dict[str, Any]], skip: int = 2) -> float:
    """The median over the updates of a run with ``log.every_steps=1``, its first ``skip`` left out."""
    return statistics.median(row["images_per_s"] for row in rows if row["kind"] == "train" and row["step"] > skip)


def gflop_per_image(model: nn.Module, size: int) -> float:
    """Of the forward and backward pass of one image of ``size`` x ``size`` pixels, a multiplication and an addition
    counted as two.
    """
    import torch  # seconds, which --help does without
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, size, size)).sum().backward()  # two images: some networks normalise over a batch
    return counter.get_total_flops() / 2 / 1e9


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (smallest to largest)``."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def record(benchmark: str, what: str, result: str, n: str, note: str = "") -> None:
    """Append a row to RESULTS.md, with machine, versions and date; ``note`` is added to ``what``."""
    import torch  # seconds, which --help does without

    from senet.rundir.commit import commit

    what = "; ".join(filter(None, [what, note]))
    capabilities = torch.cpu.get_capabilities()
    # one name is given to several generations
    known = re.findall(r"^(?:cpu )?(family|model)\s*: (\d+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:2]
    details = [*(" ".join(pair) for pair in known), f"{'with' if capabilities.get('amx_bf16') else 'without'} AMX"]
    machine = f"{psutil.cpu_count()} cores, {capabilities['cpu_name']} ({', '.join(details)})"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, commit {commit()[:9]}"
    row = f"| {benchmark} | {what} | {result} | {n} | {machine} | {versions} | {datetime.now(UTC):%Y-%m-%d} |\n"
    with (REPOSITORY / "benchmarks" / "RESULTS.md").open("a") as file:
        file.write(row)


def torchrun(script: str, *options: str, ranks: int) -> Any:
    """Run a script of this folder on so many ranks, with the allocator as ``launch.sh`` sets it; the JSON that it
    printed last."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*launcher, str(REPOSITORY / "benchmarks" / script), *options]
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1"}  # a rank sets its threads itself
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def lay_store(data_root: Path, train_images: int, test_images: int = 64) -> list[str]:
    """Random uint8 images at 32x32 where ``senet.data`` keeps CIFAR-10; the options that have them used."""
    store = data_root / "stores" / "cifar10-32"
    store.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", train_images), ("test", test_images)):
        np.save(store / f"{split}.images.npy", generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        np.save(store / f"{split}.labels.npy", generator.integers(0, 10, count, dtype=np.int64))
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.glob("*.npy")}
    meta = {"classes": [str(number) for number in range(10)], "sha256": hashes}
    (store / "meta.json").write_text(json.dumps(meta))
    return ["data.source=cifar10", f"data.root={data_root}"]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line, with what all of them take; ``doc`` is its module's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="repetitions, the variants in turn")
    parser.add_argument("--note", default="", help="for the row: what else ran, what was special")
    return parser


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Pair by pair: what drifts from pair to pair cancels."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def measured(file: str, *options: str, tuned: bool = True) -> dict[str, Any]:
    """The JSON that ``loops.py`` or ``parts.py`` prints at its end, run in a process of its own.

    Args:
        tuned: with the allocator as ``launch.sh`` sets it.
    """
    command = [sys.executable, str(REPOSITORY / "benchmarks" / file), *options]
    untuned = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
    environment = untuned | (ALLOCATOR if tuned else {})
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(command)} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
