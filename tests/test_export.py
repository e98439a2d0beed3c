"""Exported files against the checkpoint they come from."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from senet import export as command
from senet import predict
from senet.data.samplers import ImageData
from senet.errors import ConfigError, RunError
from senet.inference import formats as exported
from senet.inference.formats import SUFFIXES, export, open_network
from senet.inference.network import Trained, assemble, load_trained
from senet.models.zoo import build_model
from tests.conftest import Once, Train
from tests.harness import checkpoints

TINY = "tests.networks:tiny_senet"
KINDS = [("safetensors", False), ("onnx", False), ("onnx", True), ("torch_export", False), ("torch_export", True)]
Export = Callable[[str, bool], Path]


@pytest.fixture
def trained(finished_run: Path) -> Trained:
    return load_trained(finished_run, model_name=TINY, device="cpu")


@pytest.fixture
def write(trained: Trained, once: Once) -> Export:
    """Export once per format for this file."""

    def exported_once(kind: str, with_preprocessing: bool) -> Path:
        def write(path: Path) -> None:
            assert export(trained, kind, path, with_preprocessing=with_preprocessing) <= 1e-4

        return once(f"{with_preprocessing}{SUFFIXES[kind]}", write)

    return exported_once


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "with_preprocessing"), KINDS)
def test_an_exported_file_gives_the_checkpoints_logits_for_any_batch(
    write: Export, trained: Trained, digits: ImageData, kind: str, with_preprocessing: bool
) -> None:
    path = write(kind, with_preprocessing)
    network = open_network(path, model_name=TINY, trust=True)
    images = torch.tensor(digits.test.images)
    expected = trained.logits(images)
    for count in (1, 7, 64, len(images)):
        torch.testing.assert_close(network.logits(images[:count]), expected[:count], rtol=0, atol=1e-4)
    assert (network.classes, network.image_size) == (digits.classes, 16)
    (path.parent / "usual").touch()
    assert path.stat().st_mode == (path.parent / "usual").stat().st_mode  # readable for whoever may read here


@pytest.mark.slow
def test_the_facts_stand_in_the_files_for_others_to_read(write: Export, trained: Trained) -> None:
    with safe_open(write("safetensors", False), framework="pt") as file:
        in_safetensors = file.metadata()
    session = onnxruntime.InferenceSession(str(write("onnx", False)))
    in_onnx = session.get_modelmeta().custom_metadata_map
    for strings in (in_safetensors, in_onnx):
        facts = {name: json.loads(value) for name, value in strings.items()}
        assert facts["checkpoint_sha256"] == trained.manifest["sha256"]
        assert tuple(facts["classes"]) == trained.classes
        config = facts["config"]
        assert (config["model.name"], config["data.image_size"]) == (TINY, 16)
        assert config["data.mean"] == trained.manifest["config"]["data.mean"]
        assert config["data.std"] == trained.manifest["config"]["data.std"]
        assert "model.init_from" not in config


@pytest.mark.slow
def test_onnx_takes_raw_pixels_or_normalised_ones_and_any_batch(
    write: Export, trained: Trained, digits: ImageData
) -> None:
    images = np.array(digits.test.images[:64])
    normalised = (images / 255.0 - trained.manifest["config"]["data.mean"]) / trained.manifest["config"]["data.std"]
    normalised = normalised.astype(np.float32).transpose(0, 3, 1, 2)
    raw = onnxruntime.InferenceSession(str(write("onnx", True)))
    plain = onnxruntime.InferenceSession(str(write("onnx", False)))
    expected = trained.logits(torch.from_numpy(images)).numpy()
    for count in (1, 64):
        for session, batch in ((raw, images), (plain, normalised)):
            [logits] = session.run(["logits"], {"images": batch[:count]})
            np.testing.assert_allclose(logits, expected[:count], rtol=0, atol=1e-4)


def test_a_network_known_by_name_needs_no_model_and_weights_alone_take_no_preprocessing(
    trained: Trained, tmp_path: Path
) -> None:
    manifest = {**trained.manifest, "config": trained.manifest["config"] | {"model.name": "resnet20"}}
    weights = build_model("resnet20", num_classes=10).state_dict()
    named = assemble(manifest, weights, origin=tmp_path / "a.pt", model_name="", device="cpu")
    assert export(named, "safetensors", tmp_path / "a.safetensors", with_preprocessing=False) <= 1e-6
    assert open_network(tmp_path / "a.safetensors").classes == trained.classes
    with pytest.raises(ConfigError, match="holds weights only"):
        export(named, "safetensors", tmp_path / "b.safetensors", with_preprocessing=True)


def test_opening_a_file_runs_nobody_elses_code_unasked(write: Export) -> None:
    with pytest.raises(ConfigError, match="say --trust"):
        open_network(write("torch_export", False))
    with pytest.raises(ConfigError, match=f"say --model {TINY}"):
        open_network(write("safetensors", False))


def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path) -> None:
    for suffix in SUFFIXES.values():
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense" * 9)
        with pytest.raises(ConfigError, match=f"damaged{suffix} cannot be opened"):
            open_network(path, trust=True)
    save_file({"weight": torch.zeros(3)}, tmp_path / "others.safetensors")
    with pytest.raises(ConfigError, match=r"make it with \./launch\.sh export"):
        open_network(tmp_path / "others.safetensors")
    with pytest.raises(ConfigError, match="no such file"):
        open_network(tmp_path / "nothing.onnx")


@pytest.mark.slow
def test_a_graph_with_more_logits_than_it_names_classes_is_refused(write: Export, tmp_path: Path) -> None:
    proto = onnx.load(write("onnx", False))
    [classes] = [entry for entry in proto.metadata_props if entry.key == "classes"]
    for value, why in (('["a", "b"]', r"shape \[1, 10\] for an image, but names 2 classes"), ("{}", "classes must be")):
        classes.value = value
        onnx.save(proto, tmp_path / "few.onnx")
        with pytest.raises(ConfigError, match=rf"few\.onnx.* {why}"):
            open_network(tmp_path / "few.onnx")


def test_a_file_whose_logits_differ_is_not_left_behind(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trained.model.state_dict()
    monkeypatch.setattr(
        trained.model, "state_dict", lambda: real | {"linear.bias": real["linear.bias"] + torch.tensor(2e-4)}
    )
    with pytest.raises(RunError, match=r"differ by 0\.0002"):
        export(trained, "safetensors", tmp_path / "a.safetensors", with_preprocessing=False)
    assert list(tmp_path.iterdir()) == []


class _Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_a_network_that_is_no_graph_is_refused_in_one_line(trained: Trained, tmp_path: Path) -> None:
    undecided = Trained(trained.manifest, trained.checkpoint, _Undecided(), trained.preprocess, trained.device)
    with pytest.raises(RunError, match="torch cannot export this network") as refused:
        export(undecided, "torch_export", tmp_path / "a.pt2", with_preprocessing=False)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_its_remedy(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"onnxscript is not installed; run \./launch\.sh setup export"):
        export(trained, "onnx", tmp_path / "a.onnx", with_preprocessing=False)


@pytest.mark.slow
def test_predict_takes_every_kind_of_file(
    write: Export, finished_run: Path, digits: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(digits.test.images[0]).resize((20, 30)).save(tmp_path / "image.png")

    def predicted(network: Path, *more: str) -> list[dict[str, Any]]:
        assert predict.main([str(network), str(tmp_path / "image.png"), "--device", "cpu", "--json", *more]) == 0
        return list(json.loads(capsys.readouterr().out)["predictions"])

    expected = predicted(finished_run, "--model", TINY)
    for kind, with_preprocessing in KINDS:
        more = {"safetensors": ("--model", TINY), "torch_export": ("--trust",), "onnx": ()}[kind]
        found = predicted(write(kind, with_preprocessing), *more)
        assert [row["class"] for row in found] == [row["class"] for row in expected]
        probabilities = [row["probability"] for row in expected]
        assert [row["probability"] for row in found] == pytest.approx(probabilities, abs=1e-4)


def test_the_command_says_what_it_wrote(
    trained: Trained,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run, own = str(finished_run), ("--model", TINY)
    assert command.main([run, "--format", "safetensors", *own]) == 0
    output = f"{finished_run.name}-{trained.checkpoint.stem}.safetensors"
    assert capsys.readouterr().out.startswith(f"{output}: {Path(output).stat().st_size:,} bytes, from ")
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        command.main([run, "--format", "onnx", "--output", "net.pt", *own])
    with pytest.raises(ConfigError, match="no such folder"):
        command.main([run, "--format", "safetensors", "--output", "nowhere/a.safetensors", *own])
    with pytest.raises(ConfigError, match=r"--output /sys/a.safetensors: /sys cannot be written \("):
        command.main([run, "--format", "safetensors", "--output", "/sys/a.safetensors", *own])
    with pytest.raises(ConfigError, match=r"--output /sys/a: /sys cannot be written \("):
        command.main([run, "--format", "hf", "--output", "/sys/a", *own])
    with pytest.raises(ConfigError, match="invalid choice"):
        command.main([run, "--format", "tflite", *own])
    assert exported.SUFFIXES.keys() == {"safetensors", "onnx", "torch_export"}  # the choices of --format


def test_no_two_runs_or_kinds_have_one_name_and_nothing_is_replaced_in_silence(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ("--model", "tests.networks:no_norm")
    train_here(tmp_path / "run", f"model.name={own[1]}", "train.amp=off", "train.epochs=1")
    shutil.copytree("run", "another run")
    for run in ("run", "another run", *map(str, Path("another run/checkpoints").glob("*.pt"))):
        with suppress(ConfigError):  # its best checkpoint was written by then
            assert command.main([run, "--format", "safetensors", *own]) == 0
    assert command.main(["another run", "--format", "torch_export", *own]) == 0
    assert command.main(["another run", "--format", "torch_export", "--with-preprocessing", *own]) == 0
    written = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert len(written) == 1 + len(checkpoints(Path("run"))) + 2
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"another run-step.* exists already; remove it, or name it with --output"):
        command.main(["another run", "--format", "safetensors", *own])
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == written
    [named, *_] = tmp_path.glob("*.safetensors")
    assert command.main(["another run", "--format", "safetensors", "--output", str(named), *own]) == 0
    assert capsys.readouterr().out.startswith(f"{named} (replaced): ")
