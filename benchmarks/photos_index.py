"""Whether a start with a million photographs takes longer than one with a thousand, fresh and in mid-epoch.

    .venv/bin/python benchmarks/photos_index.py

Stores of as many images (--many, and a thousand), which share the bytes of sixteen generated JPEGs: their index is as
that of so many files, and their folder is empty. In each repetition, with both in turn, a new interpreter opens the
data, reads and decodes a batch of 64, and then one in the middle of the epoch, as a resumed start does; of this the CPU
time counts, all threads together, without the imports. With --train, train_ddp.py is started on both, fresh and in
mid-epoch, from exec to the next step (resnet20, batch 16, 96 pixels). Target: at most 2 s more than with a thousand.
Appends rows to results.jsonl.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import arguments, record
from startup import last_step, start_s

from senet import REPOSITORY

TARGET = "<= 2"  # seconds
FEW = 1000
OPENED, BATCH, MIDDLE = "data opened", "data opened, first batch", "data opened, batch in mid-epoch"
FRESH, RESUMED = "fresh start, exec to first step", "mid-epoch, exec to next step"
OPEN = """
import json, sys, time
from pathlib import Path
import torch
from senet.config.options import DataConfig
from senet.data.samplers import ResumableSampler, load_batches, open_data
def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1e3
def batch(number):
    sampler = ResumableSampler(data.train, global_batch_size=64, rank=0, world_size=1, seed=0)
    sampler.start_at(0, number)
    next(load_batches(data.train, sampler, torch.device("cpu")))
began, before = time.process_time(), anonymous()
data = open_data(DataConfig(source="imagefolder", folder=sys.argv[1], root=sys.argv[2], store="encoded", image_size=96))
opened, memory = time.process_time(), anonymous() - before
batch(0)
first = time.process_time()
batch(len(data.train) // 128)
print(json.dumps([opened - began, first - began, time.process_time() - first + opened - began, memory]))
"""


def lay(root: Path, count: int) -> tuple[Path, list[str]]:
    """A store of so many images in ten classes, a hundredth of them to test; and the options that have it used."""
    import numpy as np
    from PIL import Image

    from senet.config.options import DataConfig
    from senet.data.stores.encoded import ROW, digest_of, encoded_folder, write_encoded

    (root / "photos").mkdir(parents=True)
    config = DataConfig(source="imagefolder", folder=str(root / "photos"), root=str(root / "data"), store="encoded")
    store = encoded_folder(config)
    store.mkdir(parents=True)
    generator, contents = np.random.default_rng(0), []
    for _ in range(16):
        content = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (100, 120, 3), dtype=np.uint8)).save(content, "JPEG")
        contents.append(content.getvalue())
    (store / "0.pack").write_bytes(b"".join(contents))
    ends = np.cumsum([0, *map(len, contents)])
    keys = [f"train/n{label:08}/n{label:08}_{number}.JPEG" for number in range(count) for label in [number % 10]]
    rows = np.zeros(count, ROW)
    which = np.arange(count) % 16
    rows["label"], rows["offset"], rows["size"] = np.arange(count) % 10, ends[which], np.diff(ends)[which]
    rows["digest"] = np.array([list(digest_of(content)) for content in contents], np.uint8)[which]
    rows["key_end"] = np.cumsum([len(key) for key in keys])
    facts = {
        "source": config.folder, "classes": [f"n{label:08}" for label in range(10)], "left_out": "",
        "counts": {"train": count - count // 100, "test": count // 100}, "packs": {"0.pack": int(ends[-1])},
    }  # fmt: skip
    write_encoded(store, facts, rows, np.frombuffer("".join(keys).encode(), np.uint8))
    options = ["data.source=imagefolder", f"data.folder={config.folder}", f"data.root={config.root}"]
    return store, [
        *options, "data.store=encoded", "data.image_size=96", "model.name=resnet20",
        "train.device=cpu", "train.global_batch_size=16", "train.epochs=2", "log.every_steps=1",
        "checkpoint.every_steps=1",
    ]  # fmt: skip


def opened(options: list[str]) -> list[float]:
    """CPU seconds of ``OPENED``, ``BATCH``, ``MIDDLE``; MB of anonymous memory of an open store."""
    folder, root = (word.partition("=")[2] for word in options[1:3])
    done = subprocess.run(
        [sys.executable, "-c", OPEN, folder, root], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True
    )
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--many", type=int, default=1_000_000, help="images of the larger store")
    parser.add_argument("--train", action="store_true", help="start the trainer, too")
    args = parser.parse_args()
    times: dict[tuple[str, int], list[float]] = {}
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        stores = {count: lay(Path(folder, str(count)), count) for count in (FEW, args.many)}
        for pair in range(args.pairs):
            for count, (_, options) in stores.items():
                *seconds, megabytes = opened(options)
                for what, value in zip((OPENED, BATCH, MIDDLE), seconds, strict=True):
                    times.setdefault((what, count), []).append(value)
                memory += [megabytes] if count == args.many else []
                if args.train:
                    run_dir = Path(folder, f"run-{count}-{pair}")
                    times.setdefault((FRESH, count), []).append(start_s(run_dir, options, 0))
                    start_s(run_dir, options, last_step(run_dir) + 3)
                    times.setdefault((RESUMED, count), []).append(start_s(run_dir, options, last_step(run_dir)))
            print(f"{pair + 1}: " + ", ".join(f"{key} {values[-1]:.3f}" for key, values in times.items()), flush=True)
    for what in dict.fromkeys(what for what, _ in times):
        unit = "s" if what in (FRESH, RESUMED) else "s of CPU"
        few, many = times[what, FEW], times[what, args.many]
        more = [a - b for a, b in zip(many, few, strict=True)]
        record("photos_index.py", f"{what}, {FEW:,} images", few, unit, digits=3, note=args.note)
        record("photos_index.py", f"{what}, {args.many:,} images", many, unit, digits=3, note=args.note)
        what += f": {args.many:,} less {FEW:,} images"
        record("photos_index.py", what, more, unit, digits=3, target=TARGET, note=args.note)
    record(
        "photos_index.py", f"anonymous memory of an open store of {args.many:,} images", memory, "MB", note=args.note
    )


if __name__ == "__main__":
    main()
