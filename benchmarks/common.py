"""What the benchmarks share: the trainer in a process of its own, the median of pairs, a row of results.jsonl."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import results

from senet import REPOSITORY
from senet.distributed.environment import MALLOC

if TYPE_CHECKING:
    from torch import nn


def train(run_dir: Path, *options: str, ranks: int = 1) -> list[dict[str, Any]]:
    """Train in processes of their own, with the allocator as ``launch.sh`` sets it; the rows of metrics.jsonl.

    Args:
        options: YAML files and ``key=value``, as for ``train_ddp.py``; files relative to the repository.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, "train_ddp.py", *options, f"run_dir={run_dir}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | MALLOC, stdout=subprocess.DEVNULL, check=False)
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


def record(
    benchmark: str,
    what: str,
    values: Sequence[float],
    unit: str,
    *,
    of: str = "pairs",
    n: int | None = None,
    digits: int = 2,
    **more: Any,
) -> None:
    """Append a measurement to results.jsonl, with command, machine, versions and date; print it.

    Args:
        values: each repetition, or the one number that came of ``n`` of them.
        more: ``target``, ``note``, ``images_per_s``, ``parts``, ``gpu``, see ``results.Row``.
    """
    import torch  # seconds, which --help does without

    from senet.compat import cpu_capabilities
    from senet.rundir.commit import commit

    # one name is given to several generations
    known = re.findall(r"^(?:cpu )?(?:family|model)\s*: (\d+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:2]
    capabilities = cpu_capabilities()
    row = results.Row(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        benchmark=benchmark,
        command=_command(benchmark, sys.argv[1:]),
        what=what,
        **results.middle_and_ends(values, digits),
        unit=unit,
        n=n or len(values),
        of=of,
        cpu=" ".join(filter(None, [capabilities["cpu_name"], "/".join(known)])),
        amx=bool(capabilities.get("amx_bf16")),
        cores=psutil.cpu_count() or 1,
        torch=torch.__version__,
        python=platform.python_version(),
        commit=re.sub(r"^([0-9a-f]{9})[0-9a-f]+", r"\1", commit()),
        **more,
    )
    results.append(row)
    print(f"recorded: {what}: {row.measured}", file=sys.stderr)


def _command(benchmark: str, words: Sequence[str]) -> str:
    """Without what a row says elsewhere, and without folders of this machine."""
    kept, rest = [f"benchmarks/{benchmark}"], iter(words)
    for word in rest:
        name, is_whole, _ = word.partition("=")
        if name in ("--note", "--pairs", "--runs") and not is_whole:
            next(rest, "")  # its value
        elif name not in ("--note", "--pairs", "--runs", "data.folder", "data.table", "data.root"):
            kept.append(word)
    return shlex.join(kept)


def torchrun(script: str, *options: str, ranks: int) -> Any:
    """Run a script of this folder on so many ranks, with the allocator as ``launch.sh`` sets it; the JSON that it
    printed last."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*launcher, str(REPOSITORY / "benchmarks" / script), *options]
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": "1"}  # a rank sets its threads itself
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def lay_store(data_root: Path, train_images: int, test_images: int = 64) -> list[str]:
    """Random uint8 images at 32x32 where ``senet.data`` keeps CIFAR-10; the options that have them used."""
    from senet.data.stores.pixels import write_meta  # imports more than --help needs

    store = data_root / "stores" / "cifar10-32"
    store.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", train_images), ("test", test_images)):
        np.save(store / f"{split}.images.npy", generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        np.save(store / f"{split}.labels.npy", generator.integers(0, 10, count, dtype=np.int64))
    write_meta(store, [str(number) for number in range(10)])
    return ["data.source=cifar10", f"data.root={data_root}"]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line, with what all of them take; ``doc`` is its module's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="repetitions, the variants in turn")
    parser.add_argument("--note", default="", help="for the rows: what else ran, what was special")
    return parser


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Pair by pair: what drifts from pair to pair cancels."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def medians(*speeds: Sequence[float]) -> list[int]:
    """Of each variant, for the row of their ratio."""
    return [round(statistics.median(values)) for values in speeds]


def measured(file: str, *options: str, tuned: bool = True) -> dict[str, Any]:
    """The JSON that ``loops.py`` or ``parts.py`` prints at its end, run in a process of its own.

    Args:
        tuned: with the allocator as ``launch.sh`` sets it.
    """
    command = [sys.executable, str(REPOSITORY / "benchmarks" / file), *options]
    untuned = {key: value for key, value in os.environ.items() if key not in MALLOC}
    environment = untuned | (MALLOC if tuned else {})
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(command)} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
