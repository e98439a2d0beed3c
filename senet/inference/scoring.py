"""Score a trained network on the test split, with any number of ranks."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from senet.command import printable
from senet.config.load import restore_data
from senet.config.options import DataConfig
from senet.data.samplers import ImageData, ShardSampler, load_batches, open_data
from senet.data.sources.choice import open_files
from senet.data.splits import PictureSplit
from senet.distributed.groups import sum_over_ranks
from senet.distributed.ranks import Ranks
from senet.errors import ConfigError
from senet.inference.network import Trained
from senet.training.progress import Progress
from senet.training.scores import Scores, Tally

log = logging.getLogger(__name__)
DATA_OPTIONS = (
    "data.source", "data.root", "data.folder", "data.table", "data.columns", "data.splits", "data.decode_threads",
)  # fmt: skip # the network fixes the others


@dataclass(frozen=True)
class Evaluation:
    """Scores over the whole split, and for each image the class predicted (int64 [N]) and its probability 0..1 [N]."""

    scores: Scores
    predicted_N: np.ndarray
    probability_N: np.ndarray


def open_test_data(
    manifest: Mapping[str, Any], origin: Path, overrides: Sequence[str], *, local_rank: int = 0, is_main: bool = True
) -> tuple[ImageData, DataConfig]:
    """The data that a checkpoint was trained on, and its options with ``overrides`` applied.

    The test images are those of the test split, even if the training was judged by held-out images (data.holdout).
    Relative folders are relative to the working directory, as in training. Images are downloaded and decoded only if
    data.root is among the overrides: a file must not choose where to write. If the content is not that of the
    training, the rank with ``is_main`` warns.

    Args:
        manifest, origin: of the checkpoint, and its path.
        overrides: ``key=value``.

    Raises:
        ConfigError: an override of another option than ``DATA_OPTIONS``; see ``restore_data`` and ``open_data``; other
            classes than the checkpoint's, or the same in another order.
    """
    for pair in overrides:
        if "=" not in pair or ".".join(pair.partition("=")[0].split(".")[:2]) not in DATA_OPTIONS:
            raise ConfigError(f"{pair!r}: only {', '.join(DATA_OPTIONS)} may be set; the checkpoint has the others")
    config = replace(restore_data(manifest["config"], overrides), holdout=0)
    build = any(pair.startswith("data.root=") for pair in overrides)
    data = open_data(config, local_rank=local_rank, build=build)
    classes = manifest["classes"]
    if list(data.classes) != list(classes):
        raise ConfigError(
            f"the classes of the data ({_shortened(data.classes)}) are not those of {origin} ({_shortened(classes)}); "
            f"name its data with data.source, data.folder or data.table"
        )
    saved = str(manifest.get("data"))
    if is_main and not data.same_images(saved):
        log.warning(
            "the images are not those of the training (fingerprint %s, in training %s)",
            data.fingerprint[:12],
            printable(saved[:12]),
        )
    return data, config


def evaluate(
    trained: Trained, data: ImageData, ranks: Ranks, *, batch_size: int, flip_average: bool = False
) -> Evaluation:
    """Score each test image once; rank r takes images r, r + world_size, ... A collective: call on every rank.

    Args:
        flip_average: average the logits of an image and its mirror image.

    Raises:
        RuntimeError: the ranks together scored another number of images than the split has.
    """
    count = len(data.test)
    tally = Tally(ranks.device)
    # each image is filled in by one rank and is 0 on the others, so that integer sums merge them exactly
    predicted_N, probability_bits_N = torch.zeros(2, count, dtype=torch.int64, device=ranks.device)
    sampler = ShardSampler(count, batch_size=batch_size, rank=ranks.rank, world_size=ranks.world_size)
    with closing(load_batches(data.test, sampler, ranks.device)) as batches:
        for images_NHWC, labels_N, indices_N in Progress(ranks.is_main).over(batches, title="test", total=len(sampler)):
            if not len(labels_N):
                continue
            logits_NK = trained.logits(images_NHWC)
            if flip_average:
                logits_NK = (logits_NK + trained.logits(images_NHWC.flip(2))) / 2
            labels_N, indices_N = labels_N.to(ranks.device), indices_N.to(ranks.device)
            tally.add(F.cross_entropy(logits_NK, labels_N), logits_NK, labels_N)
            best = logits_NK.softmax(1).max(1)
            predicted_N[indices_N] = best.indices
            probability_bits_N[indices_N] = best.values.view(torch.int32).long()
    sums = sum_over_ranks(torch.cat((tally.take(), predicted_N, probability_bits_N)))  # sync point: once
    scores = Scores.from_sums(sums[:4], len(data.classes))
    if scores.num_images != count:
        raise RuntimeError(f"evaluated {scores.num_images} of {count} images")
    predicted, bits = torch.tensor(sums[4:]).chunk(2)
    return Evaluation(scores, predicted.numpy(), bits.int().view(torch.float32).numpy())


def names_of_test_images(data: ImageData, config: DataConfig) -> Sequence[str]:
    """The path of each test image in its source; none where images have no files. An encoded store knows them by
    itself: the images may be gone by now."""
    if isinstance(data.test, PictureSplit):
        return [data.test.name(number) for number in range(len(data.test))]
    files = open_files(config)
    return files.index("test").keys if files else ()


def _shortened(names: Sequence[str]) -> str:
    return f"{len(names)}: {textwrap.shorten(', '.join(names), 120)}"
