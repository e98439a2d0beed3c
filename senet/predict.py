"""Classify images: ``python -m senet.predict RUN_DIR image.jpg folder/ https://host/image.png``.

Images are read, scaled, cropped and normalised as in training, with the values in the checkpoint or exported file.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from senet.command import Parser, end, printable
from senet.errors import FAILED_EXIT_CODE, ConfigError
from senet.verbs import typed

if TYPE_CHECKING:
    import numpy as np

    from senet.inference.fetch import Limits
    from senet.inference.network import Network

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_THREADS = 8  # for reading: downloads mostly wait
_LARGEST_PIXELS = 50_000_000  # each thread may hold a decoded image


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one input, best first, with their probabilities 0..1."""

    input: str
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Failure:
    """An input that gave no image, and why."""

    input: str
    reason: str


def main(argv: Sequence[str]) -> int:
    """Predict and print; the exit code is 1 where an input failed."""
    arguments = _parser().parse_intermixed_args(argv)
    if not (arguments.top >= 1 and arguments.batch_size >= 1 and 0 < arguments.timeout <= 3600):
        raise ConfigError("--top and --batch-size must be 1 or more, --timeout more than 0 and at most 3600")
    from tqdm import tqdm

    from senet.distributed.devices import set_threads
    from senet.inference.fetch import Limits
    from senet.inference.formats import open_network  # takes seconds: torch

    set_threads(0, 1)
    network = open_network(
        arguments.network, model_name=arguments.model, device=arguments.device, trust=arguments.trust
    )
    limits = Limits(time_s=arguments.timeout)
    if arguments.allow_private:
        limits = Limits(time_s=arguments.timeout, may_connect=lambda _address: True)
    inputs = [found for name in arguments.inputs for found in expand(name)]
    text = _format(arguments.output, inputs, network.classes)
    failures = 0
    with warnings.catch_warnings(), tqdm(total=len(inputs), unit="image", disable=None, leave=False) as bar:
        warnings.filterwarnings("ignore", module="PIL")  # no warnings about files that can be read
        if arguments.output == "csv":
            bar.write("input,rank,class,probability", file=sys.stdout)
        for result in predict(network, inputs, limits, top=arguments.top, batch_size=arguments.batch_size):
            bar.update()
            if isinstance(result, Prediction):
                bar.write(text(result), file=sys.stdout)
            else:
                failures += 1
                bar.write(printable(f"predict: {result.input}: {result.reason}"), file=sys.stderr)
    return FAILED_EXIT_CODE if failures else 0


def expand(name: str) -> list[str]:
    """All files below a folder in the order of their names, but hidden ones and those with ``NO_IMAGE_SUFFIXES``;
    anything else as it is.

    Links are followed, as in training, but each folder is entered once. A folder that cannot be read is returned, and
    fails as an input.
    """
    name = os.path.expanduser(name)  # noqa: PTH111 # Path.expanduser raises where there is no such user
    if _URL.match(name) or not os.path.isdir(name):  # noqa: PTH112 # Path.is_dir raises on what is not accessible
        return [name]
    from senet.data.sources.pictures import NO_IMAGE_SUFFIXES  # imports Pillow

    found: list[str] = []
    entered = set()

    def unreadable(error: OSError) -> None:
        found.append(str(error.filename))

    for folder, folders, files in os.walk(name, followlinks=True, onerror=unreadable):
        if (real := Path(folder).resolve()) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        images = [each for each in sorted(files) if Path(each).suffix.lower() not in NO_IMAGE_SUFFIXES]
        found += [str(Path(folder, each)) for each in images if not each.startswith(".")]
    return found or [name]


def predict(
    network: Network, inputs: Sequence[str], limits: Limits, *, top: int, batch_size: int
) -> Iterator[Prediction | Failure]:
    """One result for each input, in their order; ``limits`` are those of each URL."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(inputs), batch_size):
            names = inputs[start : start + batch_size]
            loaded = list(
                pool.map(partial(load, size=network.image_size, center_crop=network.center_crop, limits=limits), names)
            )
            best = iter(_best(network, [image for image in loaded if not isinstance(image, str)], top))
            for name, image in zip(names, loaded, strict=True):
                yield Failure(name, image) if isinstance(image, str) else Prediction(name, next(best))


def _best(network: Network, images: Sequence[np.ndarray], top: int) -> list[tuple[tuple[str, float], ...]]:
    import numpy as np
    import torch

    if not images:
        return []
    probabilities_NK = network.logits(torch.from_numpy(np.stack(images))).softmax(1)
    values, numbers = (t.tolist() for t in probabilities_NK.topk(min(top, len(network.classes)), dim=1))
    return [
        tuple((network.classes[number], value) for number, value in zip(*row, strict=True))
        for row in zip(numbers, values, strict=True)
    ]


def load(name: str, *, size: int, limits: Limits, center_crop: float = 1.0) -> np.ndarray | str:
    """The pixels of a file or URL as a training evaluates them, uint8 [size, size, 3]; or why there are none."""
    import PIL

    from senet.data.sources.pictures import fit_image, read_image
    from senet.inference.fetch import FetchError, fetch

    try:
        if _URL.match(name):
            content = io.BytesIO(fetch(name, limits))
            return fit_image(read_image(content, max_pixels=_LARGEST_PIXELS), size, center_crop)
        if os.path.isdir(name):  # noqa: PTH112 # as in expand
            return "no files in this folder" if os.access(name, os.R_OK | os.X_OK) else "no permission to read it"
        if not Path(name).is_file():
            return "no such file"
        return fit_image(read_image(Path(name), max_pixels=_LARGEST_PIXELS), size, center_crop)
    except FetchError as error:
        return str(error)
    except PIL.UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # each decoder raises its own
        return f"not a readable image ({type(error).__name__}: {error})"


def _format(kind: str, inputs: Sequence[str], classes: Sequence[str]) -> Callable[[Prediction], str]:
    width = max(len(name) for name in inputs)
    class_width = max(len(name) for name in classes)

    def table(prediction: Prediction) -> str:
        cells = [f"{name:<{class_width}} {100 * share:6.2f} %" for name, share in prediction.classes]
        return printable("   ".join((f"{prediction.input:<{width}}", *cells)))

    def as_json(prediction: Prediction) -> str:
        classes = [{"class": name, "probability": share} for name, share in prediction.classes]
        return json.dumps({"input": prediction.input, "predictions": classes})

    def as_csv(prediction: Prediction) -> str:
        rows = io.StringIO()
        for rank, (name, share) in enumerate(prediction.classes, start=1):
            csv.writer(rows, lineterminator="\n").writerow((prediction.input, rank, name, f"{share:.6f}"))
        return rows.getvalue().rstrip("\n")

    return {"table": table, "json": as_json, "csv": as_csv}[kind]


def _parser() -> Parser:
    parser = Parser(
        prog=typed("predict"),
        description="Classify images. Files are read, scaled and normalised as in training.",
        epilog="An input that cannot be read or fetched gives a line on stderr, and the others go on. Exit code: 0 all "
        "inputs predicted, 1 some failed, 2 bad input.",
    )
    parser.add_network("a run directory (its best checkpoint), a checkpoint, or a .safetensors, .onnx or .pt2 file")
    parser.add_device()
    parser.add_argument("inputs", nargs="+", help="image files, folders (all files below, but hidden ones), URLs")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to show (default 5)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--json", dest="output", action="store_const", const="json", default="table", help="a JSON object per line"
    )
    how.add_argument("--csv", dest="output", action="store_const", const="csv", help="a row per input and class")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once (default 64)")
    parser.add_argument(
        "--timeout", type=float, default=20.0, metavar="S", help="seconds for each URL, redirects included (default 20)"
    )
    parser.add_argument(
        "--allow-private", action="store_true", help="fetch from addresses that are not public, such as 127.0.0.1"
    )
    parser.add_argument("--trust", action="store_true", help="open a .pt2, which can run its author's code")
    return parser


if __name__ == "__main__":
    end("predict", main)
