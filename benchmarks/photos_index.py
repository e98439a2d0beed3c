"""Whether a start with a million photographs takes longer than one with a thousand: to open them, to the first step.

    .venv/bin/python benchmarks/photos_index.py

Stores of as many images (--many, and a thousand), which share the bytes of sixteen generated JPEGs: their index is as
that of so many files, and their folder is empty. In each repetition, of both in turn: a store is opened and 256 images
read in a new interpreter, of which the time after the imports counts; and with --train train_ddp.py is started on
it, fresh and in mid-epoch, from exec to the next step (a linear network, batch 64, 96 pixels). Target: at most 2 s
more than with a thousand. Appends rows to results.jsonl. Nothing else should run meanwhile.
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
OPENED, FRESH, RESUMED = "store opened, 256 images read", "fresh start, exec to first step", "start in mid-epoch"
OPEN = """
import json, sys, time
from pathlib import Path
from senet.data.stores.encoded import open_encoded
def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1e3
began, before = time.perf_counter(), anonymous()
store = open_encoded(Path(sys.argv[1]))
count = len(store.train)
read = [store.train.read(row * (count // 256)) for row in range(256)]
print(json.dumps([time.perf_counter() - began, anonymous() - before]))
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
        *options, "data.store=encoded", "data.image_size=96", "model.name=benchmarks.networks:linear",
        "train.device=cpu", "train.global_batch_size=64", "train.epochs=2", "log.every_steps=1",
        "checkpoint.every_steps=1",
    ]  # fmt: skip


def opened(store: Path) -> tuple[float, float]:
    """Seconds, and MB of anonymous memory."""
    done = subprocess.run([sys.executable, "-c", OPEN, store], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


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
            for count, (store, options) in stores.items():
                seconds, megabytes = opened(store)
                times.setdefault((OPENED, count), []).append(seconds)
                memory += [megabytes] if count == args.many else []
                if args.train:
                    run_dir = Path(folder, f"run-{count}-{pair}")
                    times.setdefault((FRESH, count), []).append(start_s(run_dir, options, 0))
                    start_s(run_dir, options, last_step(run_dir) + 3)
                    times.setdefault((RESUMED, count), []).append(start_s(run_dir, options, last_step(run_dir)))
            print(f"{pair + 1}: " + ", ".join(f"{key} {values[-1]:.3f}" for key, values in times.items()), flush=True)
    for what in dict.fromkeys(what for what, _ in times):
        few, many = times[what, FEW], times[what, args.many]
        more = [a - b for a, b in zip(many, few, strict=True)]
        record("photos_index.py", f"{what}, {FEW:,} images", few, "s", digits=3, note=args.note)
        record("photos_index.py", f"{what}, {args.many:,} images", many, "s", digits=3, note=args.note)
        record("photos_index.py", f"{what}, more by that", more, "s", digits=3, target=TARGET, note=args.note)
    record(
        "photos_index.py", f"anonymous memory of an open store of {args.many:,} images", memory, "MB", note=args.note
    )


if __name__ == "__main__":
    main()
