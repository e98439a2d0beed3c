"""What each random change of images costs: a batch of 128 images of 224x224, on one core.

    .venv/bin/python benchmarks/changes.py

Milliseconds of CPU time that ``Preprocess.train`` takes with that change alone, more than it takes to normalise.
Beside it the same change by torchvision's v2, image by image as a DataLoader calls it (mixup and cutmix by batch), in
the same repetition. Prints and appends rows to results.jsonl.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from common import arguments, measured, medians, record

CHANGES: dict[str, dict[str, Any]] = {
    "color_jitter without hue": {"color_jitter": (0.4, 0.4, 0.4, 0.0)},
    "color_jitter": {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
    "trivial": {"trivial": True},
    "erase": {"erase": 0.25},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
}
IMAGES, SIZE = 128, 224


def cpu_ms(function: Callable[[], object]) -> float:
    """The shortest of three calls: in one of them the allocator may fetch memory."""
    spent = []
    for _ in range(3):
        began = time.process_time()
        function()
        spent.append(time.process_time() - began)
    return 1000 * min(spent)


def times() -> dict[str, tuple[float, float]]:
    """Of each change: here, and by torchvision."""
    import torch
    from torchvision.transforms import v2

    from senet.config.options import AugmentConfig
    from senet.data.augment import Preprocess

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=torch.uint8)
    planes, indices = images.permute(0, 3, 1, 2).contiguous(), torch.arange(IMAGES)
    floats, labels = planes.float(), torch.arange(IMAGES) % 10
    theirs: dict[str, Callable[[], object]] = {
        "erase": lambda: [erasing(image) for image in floats],
        "mixup": lambda: v2.MixUp(alpha=0.2, num_classes=10)(floats, labels),
        "cutmix": lambda: v2.CutMix(alpha=1.0, num_classes=10)(floats, labels),
        "trivial": lambda: [trivial(image) for image in planes],
    }
    erasing, trivial = v2.RandomErasing(p=0.25), v2.TrivialAugmentWide()
    found = {}
    for name, options in CHANGES.items():
        config = AugmentConfig(**{"crop_padding": 0, "flip": False, "cutout": 0} | options)
        here = Preprocess(config, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0, device=torch.device("cpu"))
        normalise = cpu_ms(lambda here=here: here.test(images))
        jitter = v2.ColorJitter(*options.get("color_jitter", ()))
        by_torchvision = theirs.get(name, lambda jitter=jitter: [jitter(image) for image in planes])
        ours = cpu_ms(lambda here=here: here.train(images, indices, 0)) - normalise
        found[name] = (ours, cpu_ms(by_torchvision))
    return found


def main() -> None:
    """Measure, print, append."""
    parser = arguments(__doc__)
    parser.add_argument("--json", action="store_true", help="one repetition, in this process")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(times()))
        return
    repetitions = [measured("changes.py", "--json") for _ in range(args.pairs)]
    for name in CHANGES:
        ours, theirs = (list(values) for values in zip(*(each[name] for each in repetitions), strict=True))
        [by_torchvision] = medians(theirs)
        what = f"{name}, CPU time of {IMAGES} images of {SIZE}x{SIZE}"
        parts = {"torchvision": by_torchvision}
        record("changes.py", what, ours, "ms", digits=0, parts=parts, note=args.note)


if __name__ == "__main__":
    main()
