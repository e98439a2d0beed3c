"""Photographs decoded and augmented: images per second and core, beside torchvision's DataLoader.

    .venv/bin/python benchmarks/photos.py --pairs 5

Generated JPEGs of two sizes, which the operating system has in memory. Each is cut at random (area 0.08 to 1), scaled
to 224 pixels, flipped and normalised, in batches of 64. In each repetition every variant runs once, one after another,
on all cores of this process; what is counted begins after the first batches, with as many ready as at its end. Ratios
are taken pair by pair.

ours        an encoded store, a thread a core (senet.data.decoding), and Preprocess on the whole batch
v2, v1      ImageFolder, RandomResizedCrop, RandomHorizontalFlip, conversion, Normalize of torchvision.transforms.v2 or
            of the older torchvision.transforms, in a DataLoader with a worker process a core, the decoder Pillow
decoder     Pillow alone, a thread a core: every pixel of every JPEG, nothing else
crops       the same, with no more pixels than the crops of ours need

All have memory as ``launch.sh`` gives it to a rank (``senet.distributed.environment.MALLOC``). Prints a table and
appends a row to results.jsonl for each size and ratio. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, medians, ratios, record, spread
from PIL import Image
from results import RATIO

from senet.distributed.environment import MALLOC

BATCH, SIZE, AREA = 64, 224, (0.08, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# width, height, quality, noise: about as many bytes a pixel as ImageNet's photographs and a camera's; batches
KINDS = {"500x375": (500, 375, 90, 9.0, 16), "2000x1500": (2000, 1500, 92, 5.0, 5)}
NAMES = {
    "v2": "torchvision v2", "v1": "torchvision v1", "decoder": "Pillow's decoder", "crops": "decoding for crops"
}  # fmt: skip
WARM_UP = 6  # batches: more than are ahead
TARGETS = {"500x375": ">= 1.5", "2000x1500": ">= 3"}


def photograph(width: int, height: int, quality: int, noise: float, seed: int) -> bytes:
    """A JPEG: noise in octaves, as in clouds, and that of a sensor."""
    generator, seen = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32)
    for octave in range(1, 8):
        shape = max(2, height >> (9 - octave)), max(2, width >> (9 - octave)), 3
        coarse = generator.standard_normal(shape).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            seen[..., channel] += np.asarray(layer) / 2**octave
    seen = (seen - seen.min()) / (seen.max() - seen.min()) * 255
    seen += noise * generator.standard_normal((height, width, 1)).astype(np.float32)
    file = BytesIO()
    Image.fromarray(seen.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def lay_photographs(folder: Path, kind: str, count: int) -> float:
    """A folder of classes; the mean size of its files in KB."""
    width, height, quality, noise, _ = KINDS[kind]
    files = [photograph(width, height, quality, noise, seed) for seed in range(count)]
    for number, content in enumerate(files):
        for split in ("train", "test"):
            path = folder / split / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return sum(map(len, files)) / count / 1000


def rate(batches: Iterable[Any], count: int) -> float:
    """Images per second of so many batches, after the first ones."""
    began = 0.0
    for number, _ in enumerate(itertools.islice(batches, WARM_UP + count), start=1):
        if number == WARM_UP:
            began = time.perf_counter()
    return BATCH * count / (time.perf_counter() - began)


def ours(folder: Path, threads: int, count: int) -> float:
    """By this project."""
    import torch

    from senet.config.options import AugmentConfig, DataConfig
    from senet.data.augment import Preprocess
    from senet.data.decoding import Crops
    from senet.data.samplers import load_batches, open_data

    device, augment = torch.device("cpu"), AugmentConfig(crop_padding=0, cutout=0, crop_area=AREA)
    data = DataConfig(
        "imagefolder", folder=str(folder), root=str(folder / "data"), image_size=SIZE, decode_threads=threads
    )
    split = open_data(data).train
    preprocess = Preprocess(augment, mean=MEAN, std=STD, seed=0, device=device)
    numbers = (torch.arange(turn * BATCH, (turn + 1) * BATCH) for turn in itertools.count())
    crops = Crops(SIZE, AREA, partial(preprocess.keys, epoch=0))
    with closing(load_batches(split, numbers, device, repeats=True, crops=crops)) as batches:
        return rate((preprocess.train(images, indices, 0) for images, _, indices in batches), count)


def theirs(folder: Path, workers: int, count: int, *, v2: bool) -> float:
    """By torchvision and a DataLoader."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2 as transforms_v2

    module: Any = transforms_v2 if v2 else transforms
    to_float = [module.ToImage(), module.ToDtype(torch.float32, scale=True)] if v2 else [module.ToTensor()]
    cut = [module.RandomResizedCrop(SIZE, scale=AREA, antialias=True), module.RandomHorizontalFlip()]
    images = ImageFolder(str(folder / "train"), module.Compose([*cut, *to_float, module.Normalize(MEAN, STD)]))
    sampler = RandomSampler(images, replacement=True, num_samples=BATCH * (WARM_UP + count + 4 * workers))
    return rate(DataLoader(images, BATCH, sampler=sampler, num_workers=workers), count)


def decoder(folder: Path, threads: int, count: int, *, scaled: bool) -> float:
    """By Pillow, into nothing."""
    from senet.data import decoding
    from senet.data.crops import random_box

    files = [path.read_bytes() for path in sorted((folder / "train").rglob("*.jpg"))]

    def whole(number: int) -> None:
        with Image.open(BytesIO(files[number % len(files)])) as picture:
            picture.load()

    def part(number: int) -> None:
        decoding.drafted(files[number % len(files)], SIZE, partial(random_box, key=number << 32, area=AREA))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part if scaled else whole, range(BATCH)))
        began = time.perf_counter()
        list(pool.map(part if scaled else whole, range(BATCH * count)))
        return BATCH * count / (time.perf_counter() - began)


VARIANTS: dict[str, Callable[[Path, int, int], float]] = {
    "ours": ours,
    "v2": partial(theirs, v2=True),
    "v1": partial(theirs, v2=False),
    "decoder": partial(decoder, scaled=False),
    "crops": partial(decoder, scaled=True),
}


def report(kind: str, speeds: dict[str, list[float]], kilobytes: float, args: argparse.Namespace) -> None:
    """The table of one size, and its rows."""
    print(f"\n{kind}, {kilobytes:.0f} KB    images/s a core              ours / this")
    note = "; ".join(filter(None, [f"{kilobytes:.0f} KB a JPEG", args.note]))
    for name, values in speeds.items():
        gains = ratios(speeds["ours"], values)
        print(f"{NAMES.get(name, name):20} {spread(values, 1):28} {spread(gains) * (name != 'ours')}")
        if name != "ours":
            target = TARGETS[kind] if name in ("v1", "v2") else None
            what, both = f"{kind}: decoded and augmented, over {NAMES[name]}", medians(speeds["ours"], values)
            record("photos.py", what, gains, RATIO, target=target, images_per_s=both, note=note)


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS), help="sizes of photographs")
    parser.add_argument("--images", type=int, default=32, help="different photographs of each size")
    args = parser.parse_args()
    if not MALLOC.keys() <= os.environ.keys():  # it is read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
    import torch

    from senet.distributed.devices import cores

    torch.set_num_threads(1)  # beside a decoding thread a core
    for kind in args.kinds.split(","):
        with tempfile.TemporaryDirectory() as name:
            kilobytes = lay_photographs(Path(name), kind, args.images)
            speeds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            for pair in range(args.pairs):
                for variant, measure in VARIANTS.items():
                    speeds[variant].append(measure(Path(name), cores(), KINDS[kind][-1]) / cores())
                print(f"{pair + 1}: " + ", ".join(f"{n} {v[-1]:.1f}" for n, v in speeds.items()), flush=True)
            report(kind, speeds, kilobytes, args)


if __name__ == "__main__":
    main()
