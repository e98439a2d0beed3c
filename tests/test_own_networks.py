"""Users' own networks: what they may contain, and what is refused in one line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from senet.data.samplers import ImageData
from senet.distributed.replicas import sync_batch_norms
from senet.errors import ConfigError, RunError
from senet.inference.formats import SUFFIXES, export, open_network
from senet.inference.network import load_trained
from senet.models.zoo import overrun_convolution
from senet.rundir.history import judged
from tests import networks
from tests.conftest import Train
from tests.harness import StopAt, checkpoints, differing, payload, rows, tiny, train

UNUSUAL = "model.name=tests.networks:unusual"


def test_an_unusual_network_is_trained_resumed_and_opened(train_here: Train, digits: ImageData, tmp_path: Path) -> None:
    """Five dimensions, infinite constants, an order drawn at random, extra state, versions, a train() of None."""
    options = (UNUSUAL, "train.epochs=2", "train.amp=off", "optim.name=adamw", "optim.lr=0.02")
    train_here(tmp_path / "whole", *options)
    assert train_here(tmp_path / "parts", *options, stop=StopAt(13)).state == "stopped"
    train_here(tmp_path / "parts", *options)
    whole, parts = (payload(tmp_path / name) for name in ("whole", "parts"))
    assert differing(whole["model"], parts["model"]) == differing(whole["ema"], parts["ema"]) == []
    assert torch.equal(whole["ema"]["model"]["mask"], whole["model"]["mask"])  # no NaN of -inf less -inf
    assert whole["ema"]["model"]["_extra_state"] == whole["model"]["_extra_state"]
    assert whole["model"]["_extra_state"]["passes"] == rows(tmp_path / "whole")[-1]["step"]
    trained = load_trained(tmp_path / "whole", model_name="tests.networks:unusual", device="cpu")
    images_NHWC = torch.tensor(digits.test.images)
    loss = nn.functional.cross_entropy(trained.logits(images_NHWC), digits.test.labels)
    epochs = rows(tmp_path / "whole", "epoch")
    best = epochs[epochs[-1]["best_epoch"] - 1]
    assert float(loss) == pytest.approx(best[f"{judged(best)}_loss"], rel=1e-5)
    with pytest.raises(RunError, match="_extra_state of this network is no tensor"):
        export(trained, "safetensors", tmp_path / "a.safetensors", with_preprocessing=False)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_network_with_arguments_is_trained_resumed_exported_and_opened(
    train_here: Train, digits: ImageData, tmp_path: Path
) -> None:
    name = "tests.networks:of_width"
    options = (f"model.name={name}", "model.args.width=4", "model.args.gates=false", "train.epochs=2")
    options += ("train.channels_last=false",)
    train_here(tmp_path / "whole", *options)
    assert train_here(tmp_path / "parts", *options, stop=StopAt(13)).state == "stopped"
    with pytest.raises(ConfigError, match=r"model\.args: \{'width': 4, 'gates': False\} -> \{'width': 4\}"):
        train_here(tmp_path / "parts", *options[:2], *options[3:])
    train_here(tmp_path / "parts", *options)
    assert differing(payload(tmp_path / "whole")["model"], payload(tmp_path / "parts")["model"]) == []
    trained = load_trained(tmp_path / "whole", model_name=name, device="cpu")
    assert trained.model.state_dict().keys() == networks.of_width(10, 4, gates=False).state_dict().keys()
    images_NHWC = torch.tensor(digits.test.images)
    for kind in ("safetensors", "torch_export"):
        file = tmp_path / f"a{SUFFIXES[kind]}"
        export(trained, kind, file, with_preprocessing=False)
        opened = open_network(file, model_name=name, device="cpu", trust=True)
        torch.testing.assert_close(opened.logits(images_NHWC), trained.logits(images_NHWC))


def test_a_layer_that_some_processors_compute_wrongly_is_refused(train_here: Train, tmp_path: Path) -> None:
    narrow = ("model.name=tests.networks:of_width", "model.args.width=7", "train.epochs=1")
    with pytest.raises(
        ConfigError, match=r"channels_last=true: layer2\.0\.shortcut\.0 of .* train\.channels_last=false \(resume"
    ):
        train_here(tmp_path / "run", *narrow)
    assert not (tmp_path / "run").exists()
    assert overrun_convolution(networks.of_width(10, 7)) == "layer2.0.shortcut.0"
    assert overrun_convolution(networks.of_width(10, 8)) == ""
    for other in (nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, stride=2), nn.Conv2d(4, 8, 1, stride=2, groups=2)):
        assert overrun_convolution(nn.Sequential(other)) == ""
    narrow = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2))
    assert overrun_convolution(narrow) == "0"
    assert overrun_convolution(narrow.requires_grad_(False)) == ""


def test_an_argument_that_a_network_does_not_have_is_refused_before_images_are_opened(
    train_here: Train, tmp_path: Path
) -> None:
    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("the images are opened")

    expected = r"model\.args\.widht=4: .*:of_width has no argument widht; did you mean 'width'"
    with pytest.raises(ConfigError, match=expected):
        train_here(tmp_path, "model.name=tests.networks:of_width", "model.args.widht=4", open_images=opened)


@pytest.mark.ranks
def test_a_network_that_keeps_an_activation_is_trained_on_two_ranks(data_root: Path, tmp_path: Path) -> None:
    done = train(2, *tiny(f"data.root={data_root}", f"run_dir={tmp_path}", UNUSUAL, "train.epochs=1"))
    assert done.returncode == 0, done.stderr
    assert math.isfinite(rows(tmp_path, "epoch")[-1]["ema_loss"])


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ("ignores_num_classes", r"\(2, 1000\) for 2 images, expected logits \(2, 10\)"),
        ("returns_a_pair", r"tuple for 2 images, expected logits \(2, 10\)"),
        ("returns_a_pair_in_training", r"tuple for \d+ images, expected logits"),
    ],
)
def test_a_network_without_a_logit_for_each_class_is_refused(
    train_here: Train, tmp_path: Path, network: str, found: str
) -> None:
    with pytest.raises(ConfigError, match=f"the network returned {found}"):
        train_here(tmp_path, f"model.name=tests.networks:{network}")


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ("lazy", r"the size of 1\.weight is not known before it has run .* nn\.Linear in place of nn\.LazyLinear"),
        ("lazy_norm", r"the size of 0\.weight is not known"),
        ("of_one_channel", r"takes no images of shape \(N, 3, 16, 16\): .* in Conv2d\(1, 4, "),
        (
            "of_16_pixels data.image_size=24",
            r"takes no images of shape \(N, 3, 24, 24\): .*\[768, 10\].* in Linear\(in_features=768, ",
        ),
        ("of_16_pixels data.image_size=24 augment.small_epochs=1 augment.small_size=16", r"\(N, 3, 24, 24\): "),
    ],
)
def test_a_network_of_other_images_is_refused_before_the_ranks_meet(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, found: str
) -> None:
    monkeypatch.setattr("senet.training.run.process_groups", None)
    with pytest.raises(ConfigError, match=found):
        train_here(tmp_path, *f"model.name=tests.networks:{network}".split())


def test_a_network_that_cannot_be_tried_without_memory_is_trained(train_here: Train, tmp_path: Path) -> None:
    options = ("model.name=tests.networks:looks_at_its_values", "train.epochs=1", "train.global_batch_size=256")
    assert train_here(tmp_path, *options).state == "finished"


@pytest.mark.parametrize(
    ("edited", "reason"),
    [
        ("no_norm_the_other_way_round", "order of layers=features.0.weight, this command gives linear.weight"),
        ("no_norm_partly_frozen", "number of trained parameters=6, this command gives 2"),
    ],
)
def test_edited_code_that_would_mix_up_the_optimizer_is_refused(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str, reason: str
) -> None:
    name = "model.name=tests.networks:no_norm"
    train_here(tmp_path, name, stop=StopAt(5))
    before = checkpoints(tmp_path)
    monkeypatch.setattr("tests.networks.no_norm", getattr(networks, edited))
    with pytest.raises(ConfigError, match=re.escape(f"has {reason}")):
        train_here(tmp_path, name)
    assert checkpoints(tmp_path) == before


def test_sync_bn_drops_no_activation() -> None:
    class WithActivation(nn.BatchNorm2d):
        pass

    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert [type(layer) for layer in sync_batch_norms(plain)] == [nn.Conv2d, nn.SyncBatchNorm]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"plain SyncBatchNorm of 1\.0, a WithActivation"):
        sync_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(WithActivation(4))))
