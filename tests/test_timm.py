"""Networks of timm, and folders of the Hugging Face hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from senet import export as command
from senet.config.load import load_config
from senet.data.samplers import ImageData
from senet.data.sources.pictures import fit_image
from senet.errors import ConfigError
from senet.inference.card import model_card
from senet.inference.folder import export_folder
from senet.inference.formats import SUFFIXES, export, facts_of, open_network, to_strings
from senet.inference.network import Trained, load_trained
from senet.models.zoo import build_model, refuse_other_images, refuse_unknown
from tests.conftest import Once, Train
from tests.harness import StopAt, differing, payload, tiny, train

RESNET = ("model.name=timm:test_resnet", "train.amp=off")
VIT = (
    "model.name=timm:test_vit",
    *(f"model.args.{each}" for each in ("img_size=16", "drop_path_rate=0.3", "proj_drop_rate=0.1")),
)


@pytest.fixture
def trained(train_here: Train, once: Once) -> Trained:
    """Trained once for this file."""
    return load_trained(once("timm_run", lambda run_dir: train_here(run_dir, *VIT, "train.epochs=1")), device="cpu")


@pytest.mark.parametrize("options", [RESNET, VIT], ids=["resnet", "vit"])
def test_a_network_of_timm_is_resumed_with_the_same_bits(
    train_here: Train, tmp_path: Path, options: tuple[str, ...]
) -> None:
    train_here(tmp_path / "whole", *options)
    assert train_here(tmp_path / "parts", *options, stop=StopAt(13)).state == "stopped"
    train_here(tmp_path / "parts", *options)
    whole, parts = payload(tmp_path / "whole"), payload(tmp_path / "parts")
    assert differing(whole["model"], parts["model"]) == differing(whole["ema"], parts["ema"]) == []


@pytest.mark.slow
@pytest.mark.ranks
def test_shards_of_a_network_of_timm_have_the_same_bits_on_any_number_of_ranks(data_root: Path, tmp_path: Path) -> None:
    """It draws random numbers: which block is dropped for an image, and which features."""
    for ranks in (1, 2):
        options = (f"data.root={data_root}", f"run_dir={tmp_path / str(ranks)}", "train.shards=4", "train.epochs=1")
        done = train(ranks, *tiny(*options, *VIT))
        assert done.returncode == 0, done.stderr
    assert differing(payload(tmp_path / "1")["model"], payload(tmp_path / "2")["model"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_network_of_timm_is_exported_and_opened_without_naming_it(
    trained: Trained, digits: ImageData, tmp_path: Path, kind: str
) -> None:
    """No file chooses which code is run, but timm's networks are known."""
    file = tmp_path / f"a{SUFFIXES[kind]}"
    export(trained, kind, file, with_preprocessing=False)
    images = torch.tensor(digits.test.images)
    opened = open_network(file, device="cpu", trust=True)
    torch.testing.assert_close(opened.logits(images), trained.logits(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("timm:test_rsenet", {}, r"has no network of this name; did you mean 'test_resnet'\?"),
        ("timm:test_resnet", {"widht": 3}, r"model\.args\.widht=3 \(TypeError: .*unexpected keyword argument 'widht'"),
        ("timm:test_resnet", {"act_layer": "rleu"}, r"cannot be built with model\.args\.act_layer=rleu \("),
        (
            "timm:test_resnet",
            {"pretrained": True},
            r"\.pretrained=True: weights are read with model\.init_from",
        ),
        ("timm:test_resnet", {"num_classes": 3}, r"it comes from the data"),
        ("timm:local-dir:/tmp", {}, r"has no network of this name"),
        ("timm:test_resnet.evil", {}, r"has no network of this name; did you mean 'test_resnet'"),
    ],
)
def test_a_network_that_timm_cannot_build_is_refused(name: str, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        refuse_unknown(name, arguments)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("model.args", {"checkpoint_path": "/etc/passwd"}, r"args\.checkpoint_path=/etc/passwd: weights are read with"),
        ("model.name", "timm:test_vit.evil", "has no network of this name"),
        ("model.args", {"embed_dim": -8}, r"cannot be built with model\.args\.embed_dim=-8 \(RuntimeError: "),
    ],
)
def test_a_file_cannot_have_timm_read_weights_or_fail_with_a_traceback(
    option: str, value: Any, expected: str, trained: Trained, tmp_path: Path
) -> None:
    config = trained.manifest["config"] | {option: value}
    facts = facts_of(trained, with_preprocessing=False) | {"config": config}
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", to_strings(facts))
    with pytest.raises(ConfigError, match=expected):
        open_network(tmp_path / "a.safetensors", device="cpu")


def test_a_network_of_one_size_says_how_to_have_it_of_another() -> None:
    name = "timm:vit_tiny_patch16_224"
    with torch.device("meta"):
        model = build_model(name, num_classes=10)
    with pytest.raises(ConfigError, match=r"\(N, 3, 32, 32\): Input height .* try model\.args\.img_size=32"):
        refuse_other_images(model, name, 32)
    with torch.device("meta"):
        refuse_other_images(build_model(name, num_classes=10, arguments={"img_size": 32}), name, 32)


def test_without_timm_the_line_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm is not installed; run \./launch\.sh setup timm"):
        refuse_unknown("timm:test_resnet", {})


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    assert export_folder(trained, tmp_path / "mine") <= 1e-4
    return tmp_path / "mine"


def test_timm_opens_the_exported_folder_with_the_same_logits(trained: Trained, folder: Path, digits: ImageData) -> None:
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.tensor(digits.test.images)
    with torch.inference_mode():
        found = network(trained.preprocess.test(images))
    torch.testing.assert_close(found, trained.logits(images), rtol=0, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["label_names"] == list(trained.classes)
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    (folder.parent / "usual").mkdir()
    assert folder.stat().st_mode == (folder.parent / "usual").stat().st_mode


def test_timm_prepares_pictures_as_this_program_does(trained: Trained, folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC)
    network = timm.create_model(f"local-dir:{folder}")
    told = timm.data.resolve_model_data_config(network)
    assert all(list(told[key]) == trained.manifest["config"][f"data.{key}"] for key in ("mean", "std"))
    transform = timm.data.create_transform(**told)
    images_NHWC = torch.tensor(fit_image(picture, trained.image_size))[None]
    expected: Tensor = trained.preprocess.test(images_NHWC)[0]
    found = transform(picture)
    assert found.shape == expected.shape == (3, 16, 16)
    assert float((found - expected).abs().mean()) < 0.05  # where a crop begins is rounded differently


def test_a_training_begins_from_the_exported_folder(trained: Trained, folder: Path) -> None:
    options = load_config(tiny(*VIT)).model
    model = build_model(options.name, num_classes=3, arguments=options.args, init_from=str(folder))
    state = trained.model.state_dict()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])] == [
        "head.weight",
        "head.bias",
    ]


def test_the_card_says_what_is_known_and_what_is_not(folder: Path, trained: Trained) -> None:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "timm"
    row = trained.manifest["test"]
    assert f"top-1 {row['test_top1']:.2f} %" in text
    assert "n = 1, seed 0" in text
    assert "this checkpoint was chosen as the best one on the images of its result" in text
    [recipe] = [part.partition("```")[0] for part in text.split("```yaml\n")[1:]]
    changed = yaml.safe_load(recipe)
    assert changed["model.args"] == {"img_size": 16, "drop_path_rate": 0.3, "proj_drop_rate": 0.1}
    assert not {"run_dir", "data.root", "data.folder"} & changed.keys()
    assert str(trained.checkpoint.parents[2]) not in text


def test_the_card_of_few_classes_and_of_the_middle_of_an_epoch(trained: Trained) -> None:
    few = {key: value for key, value in trained.manifest["test"].items() if "top5" not in key}
    text = model_card(replace(trained, manifest={**trained.manifest, "test": few}), "mine", of_timm=True)
    assert "top-5" not in text
    assert f"top-1 {few['test_top1']:.2f} %, loss" in text
    middle = {**trained.manifest, "step": trained.manifest["step"] - 1}
    text = model_card(replace(trained, manifest=middle), "mine", of_timm=True)
    assert "not measured: saved in the middle of an epoch" in text


def test_the_card_says_what_the_training_began_with(trained: Trained) -> None:
    assert "| began with |" not in model_card(trained, "mine", of_timm=True)
    facts = trained.manifest["facts"] | {"began_with_sha256": "1f2e"}
    config = trained.manifest["config"] | {"model.init_from": "/home/somebody/weights.pt"}
    manifest = {**trained.manifest, "facts": facts, "config": config}
    text = model_card(replace(trained, manifest=manifest), "mine", of_timm=True)
    assert "| began with | weights.pt, all weights then SHA-256 `1f2e` |" in text
    assert "began_with_sha256" not in text
    assert "somebody" not in text


def test_a_folder_of_another_network_is_opened_by_this_program(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], digits: ImageData
) -> None:
    name = "tests.networks:tiny_senet"
    options = [str(finished_run), "--model", name, "--format", "hf", "--output", str(tmp_path / "mine")]
    assert command.main(options) == 0
    assert "the logits of 64 random images differ by at most" in capsys.readouterr().out
    text = (tmp_path / "mine" / "README.md").read_text()
    assert f"predict FOLDER image.jpg --model {name}" in text
    assert "library_name: timm" not in text
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["classes"] == list(digits.classes)
    opened = open_network(tmp_path / "mine", model_name=name, device="cpu")
    images = torch.tensor(digits.test.images)
    expected = load_trained(finished_run, model_name=name, device="cpu").logits(images)
    torch.testing.assert_close(opened.logits(images), expected, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match=r"mine exists already; remove it, or name another folder"):
        command.main(options)


@pytest.mark.slow
def test_weights_of_timm_are_read_by_their_name_from_the_cache_of_the_hub(tmp_path: Path) -> None:
    """A vision transformer for other images: timm scales its table of positions."""
    source = timm.create_model("test_vit", num_classes=1000)
    snapshot = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--timm--test_vit.r160_in1k" / "refs").mkdir()
    (tmp_path / "models--timm--test_vit.r160_in1k" / "refs" / "main").write_text("1")
    save_file(source.state_dict(), snapshot / "model.safetensors")
    code = (
        "from senet.models.zoo import build_model\n"
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "m = build_model('timm:test_vit', num_classes=10, arguments={'img_size': 32}, init_from=sys.argv[1])\n"
        "print(m.pos_embed.shape[1], float(m.patch_embed.proj.weight.double().sum()))"
    )
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def begin(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, name], env=offline, capture_output=True, text=True, check=False
        )

    done = begin("timm:test_vit.r160_in1k")
    assert done.returncode == 0, done.stderr
    positions, total = done.stdout.split()
    assert (int(positions), float(total)) == (5, float(source.patch_embed.proj.weight.detach().double().sum()))
    assert "was trained with data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5]" in done.stderr
    assert "new last layer for 10 classes (head.bias, head.weight)" in done.stderr
    assert "the weights cannot be had" in begin("timm:test_resnet.r160_in1k").stderr
    assert "has no weights of this name" in begin("timm:test_resnet.nothing").stderr
