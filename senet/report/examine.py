"""Predictions and gates of a trained network on the test images: computed in one pass, or read from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from senet.data.samplers import load_batches
from senet.data.splits import Split
from senet.distributed.devices import set_threads
from senet.errors import ConfigError
from senet.inference.network import Trained, load_trained, open_checkpoint
from senet.inference.scoring import names_of_test_images, open_test_data
from senet.models.senet import SqueezeExcite
from senet.report.analysis import GRID, GateTally, Integers, Predictions, confident_mistakes, most_probable

_BATCH = 256
_LARGEST_PICTURE = 96  # pixels; larger images are scaled down for the grids


def predictions_of(
    run_dir: Path, file: Path, *, model_name: str, device: str, overrides: Sequence[str] = ()
) -> tuple[Predictions | None, str]:
    """The predictions of the run's best checkpoint: read from ``file``, or computed and saved there. Without any
    checkpoint, those in ``file``.

    Args:
        overrides: where the images are, as for ``open_test_data``.

    Returns:
        The predictions; or None, and why there are none.

    Raises:
        ConfigError: as ``load_trained``; with overrides also as ``open_test_data``.
    """
    stored = Predictions.load(file)
    if not any((run_dir / "checkpoints").glob("step_*.pt")):
        return stored, "" if stored else "the run directory holds no checkpoint"
    checkpoint = open_checkpoint(run_dir)
    manifest = checkpoint.manifest
    if stored and stored.sha256 == manifest["sha256"]:
        return stored, ""
    try:
        data, options = open_test_data(manifest, checkpoint.path, overrides)
    except ConfigError as error:
        if overrides:
            raise
        return None, f"the test images are not here: {error}"
    other_images = not data.same_images(str(manifest.get("data")))
    set_threads(0, 1)
    trained = load_trained(run_dir, model_name=model_name, device=device)
    predictions = predict(trained, data.test, other_images, names_of_test_images(data, options))
    file.parent.mkdir(exist_ok=True)
    predictions.save(file)
    return predictions, ""


def predict(trained: Trained, split: Split, other_images: bool = False, files: Sequence[str] = ()) -> Predictions:
    """One pass over the whole split in fp32, each image once; ``files``: the path of each image, if it has one."""
    gates = {name: module for name, module in trained.model.named_modules() if isinstance(module, SqueezeExcite)}
    tallies = {name: GateTally(len(trained.classes)) for name in gates}
    batch_gates: dict[str, Tensor] = {}  # of the current batch

    def record(name: str) -> Callable[[SqueezeExcite, tuple[Tensor]], None]:
        return lambda module, inputs: batch_gates.update({name: module.gate(*inputs).flatten(1)})

    hooks = [module.register_forward_pre_hook(record(name)) for name, module in gates.items()]
    found = []
    numbers = torch.arange(len(split)).split(_BATCH)
    with closing(load_batches(split, numbers, torch.device("cpu"))) as batches:
        for images_NHWC, batch_labels, _ in tqdm(batches, total=len(numbers), desc="test images", disable=None):
            found.append(most_probable(trained.logits(images_NHWC).softmax(1).cpu().numpy()))
            for name, gate_NC in batch_gates.items():
                tallies[name].add(gate_NC.cpu().double().numpy(), batch_labels.numpy())
    for hook in hooks:
        hook.remove()
    top_NT, probabilities_NT = (np.concatenate(parts) for parts in zip(*found, strict=True))
    labels_N = split.labels.numpy()
    samples = np.linspace(0, len(split) - 1, min(GRID, len(split))).astype(np.int64)
    mistakes = confident_mistakes(top_NT[:, 0], probabilities_NT[:, 0], labels_N)
    return Predictions(
        sha256=trained.manifest["sha256"],
        checkpoint=trained.checkpoint.name,
        other_images=other_images,
        classes=trained.classes,
        top_NT=top_NT,
        probabilities_NT=probabilities_NT,
        labels_N=labels_N,
        samples=samples,
        sample_images=_pictures(split, samples),
        mistakes=mistakes,
        mistake_images=_pictures(split, mistakes),
        gates={name: tally.means_KC().astype(np.float32) for name, tally in tallies.items()},
        gate_shares=np.array([tally.class_share() for tally in tallies.values()]),
        weights=trained.manifest["weights"],
        mistake_files=tuple(files[index] for index in mistakes) if files else (),
    )


def _pictures(split: Split, indices: Integers) -> NDArray[np.uint8]:
    images_NHWC = split[torch.from_numpy(indices)][0].numpy()
    size = images_NHWC.shape[1]
    if size <= _LARGEST_PICTURE:
        return np.asarray(images_NHWC)
    scaled = [Image.fromarray(image).resize((_LARGEST_PICTURE, _LARGEST_PICTURE)) for image in images_NHWC]
    return np.stack([np.asarray(picture) for picture in scaled]) if scaled else np.zeros((0, 1, 1, 3), np.uint8)
