"""What an earlier version wrote (``tests/before``) is read: a stopped run, a store, exported files, a submitted job."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from submitit.core.utils import DelayedSubmission

from senet import predict
from senet.config.load import load_config
from senet.config.options import DataConfig
from senet.data.stores.choice import open_store
from senet.errors import ConfigError
from senet.inference.formats import open_network
from senet.inference.scoring import open_test_data
from senet.rundir import owner
from senet.rundir.checkpoint import published_files, read_checkpoint
from senet.rundir.files import read_json, read_rows, write_json
from senet.rundir.saving import CheckpointManager
from senet.training.resume import check_store
from slurm.control import status
from slurm.job import Job
from tests.conftest import Train
from tests.harness import (
    StopAt,
    checkpoints,
    differing,
    edit_manifest,
    payload,
    rows,
    tiny_config,
    train,
    without_clock,
)
from tests.harness import status as status_of

NARROW = "tests.networks:narrow_senet"
STEPS_PER_EPOCH, STEPS = 6, 36


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy, in which the images have the times by which their store is found."""
    copy = shutil.copytree(Path(__file__).parent / "before", tmp_path / "before")
    for path in copy.glob("images/*/*/*.png"):
        os.utime(path, (1767225600, 1767225600))
    return copy


def _data(before: Path) -> DataConfig:
    return DataConfig(source="imagefolder", root=f"{before}/data", folder=f"{before}/images", image_size=16)


@pytest.mark.slow
@pytest.mark.ranks
def test_a_run_that_was_stopped_in_mid_epoch_goes_on_from_there_to_its_end(before: Path) -> None:
    run_dir = before / "run"
    checkpoint, step = checkpoints(run_dir)[-1], status_of(run_dir)["step"]
    earlier_rows = (run_dir / "metrics.jsonl").read_bytes()
    assert step % STEPS_PER_EPOCH != 0
    options = (f"data.root={before}/data", f"data.folder={before}/images", f"run_dir={run_dir}")
    done = train(1, str(run_dir / "config.yaml"), *options)
    assert done.returncode == 0, done.stderr
    assert f"resumed from {checkpoint} at step {step}" in done.stdout + done.stderr
    assert (run_dir / "metrics.jsonl").read_bytes().startswith(earlier_rows)
    assert [row["step"] for row in rows(run_dir)] == [*range(1, STEPS + 1)]
    assert [start["resumed_from"] for start in read_rows(run_dir / "starts.jsonl")] == [0, step]
    last = status_of(run_dir)
    assert (last["state"], last["step"], last["generation"]) == ("finished", STEPS, 2)
    assert last["result"]["ema_top1"] > 80  # chance is 33


def test_a_run_on_files_of_more_than_64_pixels_goes_on_with_the_pixels_that_it_has(
    before: Path, tmp_path: Path, train_here: Train
) -> None:
    run_dir, root = tmp_path / "run", tmp_path / "data"
    options = ["data.source=imagefolder", f"data.folder={before}/images", f"data.root={root}", "data.image_size=72"]
    options += ["train.global_batch_size=8", "train.epochs=2", "train.amp=off", "schedule.warmup_epochs=0"]
    train_here(tmp_path / "undisturbed", *options, "data.store=pixels")
    train_here(run_dir, *options, "data.store=pixels", stop=StopAt(4))
    [checkpoint, *_] = published_files(run_dir / "checkpoints")
    for path in checkpoints(run_dir):
        edit_manifest(path, lambda manifest: manifest["config"].pop("data.store"))
    [store] = kept = [path for path in (root / "stores").iterdir() if path.is_dir()]

    line = f"{checkpoint} was trained with data.store=pixels, and data.store=auto is encoded here, "
    line += "which changes the numbers; set data.store=pixels, or choose another run_dir"
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        train_here(run_dir, *options)
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):  # before any rank builds
        check_store(tiny_config(*options, f"run_dir={run_dir}"), None)
    data, _ = open_test_data(read_checkpoint(checkpoint).manifest, checkpoint, [f"data.root={root}"])
    assert data.store == store
    assert [path for path in (root / "stores").iterdir() if path.is_dir()] == kept

    train_here(run_dir, *options, "data.store=pixels")
    assert [start["resumed_from"] for start in read_rows(run_dir / "starts.jsonl")] == [0, 4]
    ends = (without_clock(payload(each)) for each in (run_dir, tmp_path / "undisturbed"))
    assert differing(*ends) == []
    assert [path for path in (root / "stores").iterdir() if path.is_dir()] == kept


def test_a_store_is_opened_and_not_built_anew(before: Path) -> None:
    store = open_store(_data(before), build=False)
    assert store.classes == ("blue", "green", "red")
    for split, (images, labels) in (("train", store.train), ("test", store.test)):
        paths = sorted((before / "images" / split).glob("*/*.png"))
        assert [store.classes[label] for label in labels] == [path.parent.name for path in paths]
        np.testing.assert_array_equal(images, [np.asarray(Image.open(path)) for path in paths])
    assert read_checkpoint(checkpoints(before / "run")[0]).manifest["data"] == store.fingerprint


@pytest.mark.parametrize("name", ["run", "network.safetensors", "network.onnx"])
def test_a_network_says_of_each_image_what_it_said(
    before: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(before)
    assert predict.main([name, "images/test", "--model", NARROW, "--device", "cpu", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [*read_rows(before / "predictions.jsonl")]
    assert len(expected) == 9
    for one, other in zip(found, expected, strict=True):
        assert one["input"] == other["input"]
        assert [row["class"] for row in one["predictions"]] == [row["class"] for row in other["predictions"]]
        shares = [[row["probability"] for row in each["predictions"]] for each in (one, other)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-4)


def test_a_submitted_job_is_the_same_job_with_the_same_options(before: Path) -> None:
    folder = before / "run" / "slurm"
    [pickled], [config] = folder.glob("*_submitted.pkl"), folder.glob("config-*.yaml")
    facts = read_json(folder / "job.json")
    job = DelayedSubmission.load(pickled).function
    assert job == Job(run_dir="/tmp/before/run", config=facts["config"], code=facts["code"], max_requeues=100)
    assert Path(facts["config"]).name == config.name
    options = load_config([str(config)])
    assert (options.run_dir, options.model.name, options.slurm.cluster) == (job.run_dir, NARROW, "local")


def test_the_status_of_a_submitted_run_is_told(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status([str(before / "run")])
    row = capsys.readouterr().out.splitlines()[1].split()
    step = status_of(before / "run")["step"]
    assert row[2:5] == ["stopped", str(step), str(step // STEPS_PER_EPOCH)]


def _newer_checkpoint(before: Path) -> None:
    for path in checkpoints(before / "run"):
        edit_manifest(path, lambda manifest: manifest.update(format=2))


def _newer_store(before: Path) -> None:
    [meta] = before.glob("data/stores/*/meta.json")
    write_json(meta, read_json(meta) | {"format": 2})


def _newer_export(before: Path) -> None:
    path = before / "network.safetensors"
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no mapping
        save_file(weights, path, file.metadata() | {"format": "2"})


@pytest.mark.parametrize(
    ("make_newer", "read"),
    [
        (_newer_checkpoint, lambda before: open_network(before / "run", model_name=NARROW, device="cpu")),
        (
            _newer_checkpoint,
            lambda before: CheckpointManager(
                before / "run" / "checkpoints", keep=1, generation=2, resumed_from={}
            ).newest(),
        ),
        (_newer_store, lambda before: open_store(_data(before))),
        (_newer_export, lambda before: open_network(before / "network.safetensors", model_name=NARROW)),
    ],
    ids=["a network is asked for", "a run is resumed", "a store is opened", "an exported file is opened"],
)
def test_a_newer_format_is_refused_and_nothing_is_moved_or_built_anew(
    before: Path, make_newer: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    make_newer(before)
    files = {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="has format 2, this version reads 1 to 1; use the version that wrote it"):
        read(before)
    assert {path: path.read_bytes() for path in before.rglob("*") if path.is_file()} == files


def test_a_run_directory_of_somebody_else_is_refused_by_each_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(owner, "is_sweep", denied)
    with pytest.raises(ConfigError, match=r"^run_dir=\S+ cannot be read \(Permission denied\); choose another"):
        check_store(tiny_config(f"run_dir={tmp_path}"), None)
