"""Accuracy and loss of a trained network on the test split: ``python -m senet.evaluate RUN_DIR [data.root=...]``.

Each image counts once for any number of ranks; ``torchrun --nproc_per_node=2 -m senet.evaluate ...`` shares the work.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senet.command import Parser, end, leave, path_argument, printable
from senet.config.options import DataConfig, DistributedConfig, TrainConfig
from senet.distributed.environment import read_place
from senet.errors import FAILED_EXIT_CODE, ConfigError
from senet.rundir.files import check_output, replace_file
from senet.verbs import typed

_MOST_CLASSES = 20  # so many are all listed; of more, those of the lowest accuracy

if TYPE_CHECKING:
    from senet.data.samplers import ImageData
    from senet.distributed.ranks import Ranks
    from senet.inference.network import Trained
    from senet.inference.scoring import Evaluation


def main(argv: Sequence[str]) -> int:
    """Evaluate with all ranks; rank 0 prints."""
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size {arguments.batch_size} must be 1 or more")

    from senet.distributed.devices import set_threads
    from senet.distributed.groups import leave_together, process_groups  # takes seconds: torch
    from senet.distributed.meeting import meet, must_be_equal
    from senet.distributed.ranks import Ranks
    from senet.distributed.watchdog import Watchdog
    from senet.inference.scoring import evaluate

    logging.basicConfig(format="evaluate: %(message)s")
    config = DistributedConfig()
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(read_place(), config.start_timeout_s, end=_give_up))
        ranks = Ranks.from_environment(TrainConfig(device=arguments.device), option="--device")
        set_threads(0, ranks.local_world_size)
        store, (trained, data, data_config) = meet(
            ranks,
            watchdog,
            must_be_equal(ranks, {"batch_size": arguments.batch_size, "flip_average": arguments.flip_average}),
            lambda: _prepare(arguments, ranks),
            # a run that still trains may publish a new best checkpoint between two ranks
            lambda found: {
                "checkpoint": found[0].manifest["sha256"],
                "fingerprint of the images": found[1].fingerprint,
            },
        )
        group = stack.enter_context(process_groups(ranks, store, config, watchdog))
        watchdog.close()
        result = evaluate(trained, data, ranks, batch_size=arguments.batch_size, flip_average=arguments.flip_average)
        if ranks.is_main:
            # a named file may have been the best one only when it was written
            best = arguments.network.is_dir() and trained.manifest["best"]
            report = _report(result, trained, data) | {"best": best, "flip_average": arguments.flip_average}
            print(json.dumps(report) if arguments.json else _text(report), flush=True)
            if arguments.predictions:
                replace_file(arguments.predictions, _predictions(result, data, data_config))
        leave_together(group)  # at the first exit torchrun ends the other ranks
    return 0


def _give_up(reason: str) -> None:
    print(f"evaluate: {reason}", file=sys.stderr)
    leave(FAILED_EXIT_CODE)


def _prepare(arguments: Namespace, ranks: Ranks) -> tuple[Trained, ImageData, DataConfig]:
    """Open network and data: everything that can be refused, before there are process groups."""
    import torch

    from senet.inference.network import load_trained
    from senet.inference.scoring import open_test_data

    if arguments.predictions and ranks.is_main:  # it writes them
        check_output("--predictions", arguments.predictions)
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    trained = load_trained(arguments.network, model_name=arguments.model, device=ranks.device.type)
    data, config = open_test_data(
        trained.manifest,
        trained.checkpoint,
        arguments.overrides,
        local_rank=ranks.local_rank,
        is_main=ranks.is_main,
    )
    return trained, data, config


def _report(result: Evaluation, trained: Trained, data: ImageData) -> dict[str, Any]:
    """What is printed: loss in nats (None where it is not finite), accuracies in percent."""
    import numpy as np

    labels_N = data.test.labels.numpy()
    images_K = np.bincount(labels_N, minlength=len(data.classes))
    hits_K = np.bincount(labels_N[labels_N == result.predicted_N], minlength=len(data.classes))
    scores = result.scores
    return {
        "checkpoint": str(trained.checkpoint),
        "step": trained.manifest["step"],
        "weights": trained.manifest["weights"],
        "same_data": data.same_images(str(trained.manifest.get("data"))),
        "images": scores.num_images,
        "loss": scores.loss if math.isfinite(scores.loss) else None,
        "top1": scores.top1,
        "top5": scores.top5,
        "classes": [
            {"class": name, "images": images, "top1": 100 * hits / images if images else None}
            for name, images, hits in zip(data.classes, images_K.tolist(), hits_K.tolist(), strict=True)
        ],
    }


def _text(report: Mapping[str, Any]) -> str:
    rows = report["classes"]
    if len(rows) > _MOST_CLASSES:
        rows = sorted((row for row in rows if row["images"]), key=lambda row: row["top1"])[:_MOST_CLASSES]
    left_out = len(report["classes"]) - len(rows)
    width = max(len("class"), *(len(row["class"]) for row in rows))
    loss = "not finite" if report["loss"] is None else f"{report['loss']:.4f}"
    top5 = "" if report["top5"] is None else f"   top-5 {report['top5']:.2f} %"
    which = f"{'best checkpoint, ' if report['best'] else ''}step {report['step']}, {report['weights']} weights"
    lines = [
        f"{report['checkpoint']} ({which}), {report['images']:,} test images"
        + (", each with its mirror image" if report["flip_average"] else ""),
        f"top-1 {report['top1']:.2f} %{top5}   loss {loss}",
        "",
        f"{'class':<{width}}  images  top-1",
    ]
    for row in rows:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.2f} %"
        lines.append(f"{row['class']:<{width}} {row['images']:>7,} {top1:>8}")
    if left_out:
        lines.append(f"these are the lowest; --json has the other {left_out:,} classes too")
    return "\n".join(map(printable, lines))


def _predictions(result: Evaluation, data: ImageData, config: DataConfig) -> bytes:
    """A CSV row for each test image: its number, its file if it has one, label, prediction, probability."""
    from senet.inference.scoring import names_of_test_images

    root = Path(config.folder) if config.folder else Path(config.table).parent
    paths = [f"{root / name}" for name in names_of_test_images(data, config)]
    labels = data.test.labels.tolist()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("index", "path", "label", "prediction", "probability"))
    for index, (path, label, predicted, probability) in enumerate(
        zip(paths or [""] * len(labels), labels, result.predicted_N, result.probability_N, strict=True)
    ):
        rows.writerow((index, path, data.classes[label], data.classes[predicted], f"{probability:.6f}"))
    return text.getvalue().encode(errors="surrogateescape")  # file names need not be UTF-8


def _parser() -> Parser:
    parser = Parser(
        prog=typed("evaluate"),
        description="Accuracy and loss on the test split, each image once. With several ranks: "
        "NPROC=2 ./launch.sh evaluate ..., or torchrun --nproc_per_node=2 -m senet.evaluate ...",
        epilog="Exit code: 0 evaluated, 1 failed, 2 bad input.",
    )
    parser.add_network("a run directory (its best checkpoint) or a checkpoint")
    parser.add_device()
    parser.add_argument(
        "overrides",
        nargs="*",
        default=(),  # else argparse calls them required
        metavar="key=value",
        help="data.source, .root, .folder, .table, .columns, .splits, .decode_threads; default: as it was trained. "
        "Images are only downloaded and decoded into a data.root that is given here",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--flip-average", action="store_true", help="average the logits of an image and its mirror image"
    )
    parser.add_argument("--predictions", type=path_argument, metavar="FILE", help="write a CSV row for each image")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="images per rank (default 256)")
    return parser


if __name__ == "__main__":
    end("evaluate", main)
