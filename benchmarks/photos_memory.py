"""Memory of a training that reads a store of photographs five times as large as the memory it may use.

    .venv/bin/python benchmarks/photos_memory.py        (as root: it makes a control group)

train_ddp.py with a linear classifier, whose activations take no memory, on generated JPEGs of about a megabyte, in a
control group whose memory is limited to --limit MB; the page cache of the files that it reads counts there too. RssAnon
of the trainer, what no file stands behind, is read from /proc twenty times a second, from the second update on. Wanted:
it grows by no more than the bounded batches, and a picture in each decoding thread. Each repetition is another
training. Appends rows to results.jsonl.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from common import arguments, record

from senet import REPOSITORY
from senet.distributed.devices import cores
from senet.distributed.environment import MALLOC

SIDE, DIFFERENT, OVER = 1000, 20, 5
BATCH, SIZE, AT_ONCE = 256, 32, 4
PIXEL = 16  # bytes, at most, while it is decoded: senet.data.decoding


@contextmanager
def limited(limit_mb: int) -> Iterator[Path]:
    """A control group, of version 1 or 2, with so much memory; its folder."""
    root = Path("/sys/fs/cgroup/memory")
    first, name = (root, "memory.limit_in_bytes") if root.is_dir() else (root.parent, "memory.max")
    group = first / f"photos-{os.getpid()}"
    group.mkdir()
    try:
        (group / name).write_text(str(limit_mb * 2**20))
        yield group
    finally:
        group.rmdir()


def photographs(limit_mb: int) -> Iterator[bytes]:
    """JPEGs of ``OVER`` times the limit together, of which ``DIFFERENT`` are different."""
    from PIL import Image  # imports more than --help needs

    drawn = np.random.default_rng(0)
    some = []
    for _ in range(DIFFERENT):
        file = BytesIO()
        Image.fromarray(drawn.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "JPEG", quality=85)
        some.append(file.getvalue())
    total = 0
    while total < OVER * limit_mb * 2**20:
        for content in some:
            total += len(content)
            yield content


def write(folder: Path, limit_mb: int) -> int:
    """The training pictures in two classes, and four for the test; bytes of all."""
    total = 0
    for number, content in enumerate(photographs(limit_mb)):
        path = folder / "train" / f"class{number % 2}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        total += len(content)
        if number < 4:
            path = folder / "test" / f"class{number % 2}" / f"{number:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return total


def anonymous_mb(pid: int) -> float:
    """RssAnon of a process; 0 once it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def steps(run_dir: Path) -> int:
    """Rows of updates in metrics.jsonl that are whole."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return sum(json.loads(line)["kind"] == "train" for line in lines)


def growth(options: list[str], run_dir: Path, group: Path) -> tuple[float, float]:
    """MB of RssAnon after the second update, and the most that it grew by."""
    command = [sys.executable, "train_ddp.py", *options, f"run_dir={run_dir}"]
    log = run_dir.with_suffix(".log")

    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | MALLOC, stdout=file, stderr=file, preexec_fn=join
        ) as process,
    ):
        first = most = 0.0
        while process.poll() is None:
            if first or steps(run_dir) >= 2:
                now = anonymous_mb(process.pid)
                first, most = first or now, max(most, now)
            time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: {log.read_text()}")
    return first, most - first


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, default=512, help="MB of memory that the trainer may use")
    args = parser.parse_args()
    found, began = [], []
    with tempfile.TemporaryDirectory() as place, limited(args.limit) as group:
        folder = Path(place, "photos")
        size = write(folder, args.limit)
        options = [
            "configs/quickstart.yaml", "data.source=imagefolder", f"data.folder={folder}", f"data.root={place}/data",
            "data.store=encoded", f"data.image_size={SIZE}", "model.name=benchmarks.networks:linear",
            "train.device=cpu", "train.amp=off",
            f"train.global_batch_size={BATCH}", "train.eval_batch_size=4", "train.epochs=1", "log.every_steps=1",
            "checkpoint.every_steps=1000", "augment.crop_padding=0", "augment.crop_area=[0.08,1]", "log.to=[]",
        ]  # fmt: skip
        subprocess.run([sys.executable, "-m", "senet.data", "prepare", *options], cwd=REPOSITORY, check=True)
        for pair in range(args.pairs):
            first, more = growth(options, Path(place, f"run-{pair}"), group)
            began.append(first)
            found.append(more)
            print(f"{pair + 1}: {first:.0f} MB after two updates, {more:.1f} MB more at most", flush=True)
    bounded = AT_ONCE * BATCH * SIZE * SIZE * 3 / 2**20
    decoded = PIXEL * SIDE**2 / 2**20
    print(f"batches at once: {bounded:.1f} MB; a picture in each of {cores()} threads: {decoded:.1f} MB")
    note = f"store of {size / 2**20:,.0f} MB, group of {args.limit} MB, {began[0]:.0f} MB at first; "
    note += f"batches at once {bounded:.1f} MB"
    note = "; ".join(filter(None, [note, args.note]))
    record("photos_memory.py", "growth of RssAnon over an epoch", found, "MB", of="trainings", digits=1, note=note)


if __name__ == "__main__":
    main()
