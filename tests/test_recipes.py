"""The recipes for photographs, cut down to a small network and generated pictures of many sizes."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from senet import REPOSITORY, evaluate, predict
from senet.config.load import load_config, to_flat
from senet.config.options import Config
from senet.report.examine import predictions_of
from senet.training.state import Summary
from tests.conftest import Once
from tests.harness import rows

CLASSES = ("blue", "green", "red")
TINY = "tests.networks:tiny_senet"
CUT = {
    **{"data.image_size": 72, "model.name": TINY, "train.epochs": 4, "schedule.warmup_epochs": 0.5},
    **{"train.global_batch_size": 8, "optim.lr": 0.02, "train.ema_decay": 0.9, "train.amp": "off"},
    **{
        "train.threads_per_rank": 1,
        "data.decode_threads": 2,
        "checkpoint.every_steps": 4,
        "log.every_steps": 2,
        "log.to": "[]",
    },
}
"""What a test has other than the recipe: less of everything, and one precision."""
Recipe = Callable[..., tuple[Config, Summary]]


@pytest.fixture
def train_recipe() -> Iterator[Recipe]:
    """``train_recipe(name, run_dir, photos, key=value, ...)``, in this process."""
    import torch
    import torch.distributed as dist

    from senet.distributed.preemption import StopFlag
    from senet.training.run import run

    threads = torch.get_num_threads()

    def train(recipe: Path, run_dir: Path, photos: Path, *overrides: str) -> tuple[Config, Summary]:
        cut = [f"{key}={value}" for key, value in CUT.items()]
        argv = [
            str(recipe),
            f"data.folder={photos}",
            f"run_dir={run_dir}",
            f"data.root={run_dir}-data",
            *cut,
            *overrides,
        ]
        config = load_config(argv)
        try:
            return config, run(config, argv, StopFlag())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    yield train
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def photos(once: Once) -> Path:
    """JPEG and PNG files between 60 and 200 pixels, upright and lying, of three colours and noise."""

    def draw(folder: Path) -> None:
        noise = np.random.default_rng(0)
        for split, count in (("train", 20), ("val", 8)):
            for label, name in enumerate(CLASSES):
                for number in range(count):
                    height, width = noise.integers(60, 200, 2)
                    pixels = noise.integers(0, 120, (height, width, 3), dtype=np.uint8)
                    pixels[..., 2 - label] += 130
                    path = folder / split / name / f"{number:02}.{'png' if number % 5 == 4 else 'jpg'}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)

    return once("photos", draw)


@pytest.fixture
def photos_run(train_recipe: Recipe, photos: Path, once: Once) -> Path:
    """Of photos.yaml, to its end: to be read only."""
    return once("photos_run", lambda run_dir: train_recipe(REPOSITORY / "configs" / "photos.yaml", run_dir, photos))


@pytest.mark.parametrize("name", ["photos", "imagenet"])
def test_a_recipe_for_photographs_trains_with_all_that_it_asks_for(
    name: str, train_recipe: Recipe, photos: Path, tmp_path: Path
) -> None:
    text = (REPOSITORY / "configs" / f"{name}.yaml").read_text()
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(re.sub(r"^  # (small_\w+: \d+)", r"  \1", text, flags=re.MULTILINE))  # what it offers
    small = ("augment.small_size=40", "augment.small_epochs=2")
    config, summary = train_recipe(recipe, tmp_path / "run", photos, *small)
    shipped, used = to_flat(load_config([str(recipe), f"data.folder={photos}"])), to_flat(config)
    changed = {key for key in used if used[key] != shipped[key]}
    assert changed <= {*CUT, "run_dir", "data.root", "augment.small_size", "augment.small_epochs"}
    assert shipped["augment.small_epochs"] < shipped["train.epochs"]
    kept = [path.name for path in (tmp_path / "run-data" / "stores").iterdir() if path.is_dir()]
    assert [Path(name).suffix for name in kept] == [".encoded"]
    assert summary.state == "finished"
    assert [row["epoch"] for row in rows(tmp_path / "run", "epoch")] == [1, 2, 3, 4]
    assert summary.result["best_top1"] > 100 / len(CLASSES)


def test_what_is_asked_of_a_network_that_learned_from_photographs_agrees(
    photos_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senet.inference.scoring.open_files", lambda _: pytest.fail("the folder is not looked at"))
    arguments = [str(photos_run), "--model", TINY, "--device", "cpu"]
    assert evaluate.main([*arguments, "--predictions", str(tmp_path / "evaluated.csv")]) == 0
    capsys.readouterr()
    assert predict.main([*arguments, str(photos / "val"), "--csv", "--top", "1"]) == 0
    predicted = {row["input"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    evaluated = list(csv.DictReader((tmp_path / "evaluated.csv").read_text().splitlines()))
    assert len(evaluated) == len(predicted) == 24
    for row in evaluated:
        assert Path(row["path"]).parent.name == row["label"]
        assert predicted[row["path"]]["class"] == row["prediction"]
        assert float(predicted[row["path"]]["probability"]) == pytest.approx(float(row["probability"]), abs=2e-6)
    seen, why = predictions_of(photos_run, tmp_path / "seen.npz", model_name=TINY, device="cpu")
    assert seen is not None, why
    assert seen.sample_images.shape == (24, 72, 72, 3)
    names = np.array(seen.classes)
    assert names[seen.labels_N].tolist() == [row["label"] for row in evaluated]
    assert names[seen.predicted_N].tolist() == [row["prediction"] for row in evaluated]
    assert [str(photos / name) for name in seen.mistake_files] == [evaluated[index]["path"] for index in seen.mistakes]
