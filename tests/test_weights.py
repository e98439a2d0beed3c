"""model.init_from: which files it reads, which layers stay random, what it refuses."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from senet.errors import ConfigError
from senet.models.senet import insert_se
from senet.models.zoo import build_model
from tests.conftest import Train
from tests.harness import checkpoints, payload, rows

TINY = "tests.networks:tiny_senet"
UNUSUAL = "tests.networks:unusual"


def flat_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As saved by a version whose blocks had no module for the gate."""
    return {key.replace(".se.", "."): value for key, value in state.items()}


def prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


WRAPS = [
    dict,
    lambda state: {"model": state, "state": {}},
    lambda state: {"net": prefixed("module.")(state)},
    lambda state: {"state_dict": prefixed("model.")(state), "state_dict_ema": {}, "epoch": 3},
    lambda state: {"state_dict_ema": state},
    lambda state: {"model_state_dict": prefixed("_orig_mod.module.")(state), "optimizer_state_dict": {"state": {}}},
    lambda state: {"state_dict": {"model": prefixed("net._orig_mod.")(state)}},
    prefixed("student.backbone."),
    lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.")(state)},
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_weights_come_from_a_file_and_the_head_is_new_for_other_classes(
    tmp_path: Path, wrap: Callable[..., Any]
) -> None:
    source = build_model("tests.networks:tiny_senet", num_classes=10)
    torch.save(wrap(flat_keys(source.state_dict())), tmp_path / "w.pt")
    same = build_model("tests.networks:tiny_senet", num_classes=10, init_from=str(tmp_path / "w.pt"))
    other = build_model("tests.networks:tiny_senet", num_classes=4, init_from=str(tmp_path / "w.pt"))
    for key, value in source.state_dict().items():
        assert torch.equal(same.state_dict()[key], value)
        assert key.startswith("linear.") or torch.equal(other.state_dict()[key], value)
    assert other.state_dict()["linear.weight"].shape[0] == 4


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(build_model("tests.networks:no_norm", num_classes=10).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="of another network"):
        build_model("tests.networks:tiny_senet", num_classes=10, init_from=str(tmp_path / "w.pt"))
    torch.save({"conv1.weight": torch.zeros(8, 5, 3, 3), "bn1.num_batches_tracked": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="of another network"):
        build_model("tests.networks:tiny_senet", num_classes=10, init_from=str(tmp_path / "w.pt"))
    with pytest.raises(ConfigError, match="no such file"):
        build_model("senet18", num_classes=10, init_from="nowhere.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ConfigError, match="is no file of weights"):
        build_model("senet18", num_classes=10, init_from=str(tmp_path / "text.pt"))


def test_what_wrappers_save_is_known_with_the_versions_of_its_modules(tmp_path: Path) -> None:
    """This network refuses a state dict without its version, and has state that is no tensor."""
    source = build_model(UNUSUAL, num_classes=10)
    source.passes = 7
    wrappers: list[Callable[[nn.Module], nn.Module]] = [DataParallel, AveragedModel, torch.compile]  # type: ignore[list-item]
    for wrap in (*wrappers, lambda model: DataParallel(torch.compile(model))):
        torch.save({"state_dict": wrap(source).state_dict()}, tmp_path / "w.pt")
        model = build_model(UNUSUAL, num_classes=10, init_from=str(tmp_path / "w.pt"))
        assert model.passes == 7
        assert torch.equal(model.linear.weight, source.linear.weight)


def test_a_network_that_has_such_a_prefix_itself_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapped(num_classes: int) -> nn.Module:
        return nn.ModuleDict({"model": build_model(TINY, num_classes=num_classes)})

    monkeypatch.setattr("tests.networks.wrapped", wrapped, raising=False)
    source = wrapped(10)
    for state in (source.state_dict(), prefixed("module.")(source.state_dict())):
        torch.save(state, tmp_path / "w.pt")
        model = build_model("tests.networks:wrapped", num_classes=10, init_from=str(tmp_path / "w.pt"))
        assert torch.equal(model.state_dict()["model.conv1.weight"], source.state_dict()["model.conv1.weight"])


@pytest.mark.parametrize(
    ("plain", "gated"),
    [
        ("preact_resnet18", "senet18"),
        *((name, f"se_{name}") for name in ("resnet18", "resnet50", "resnet20", "googlenet", "inception_v3")),
    ],
)
def test_a_network_with_gates_begins_from_its_twin_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plain: str, gated: str
) -> None:
    source = build_model(plain, num_classes=10)
    torch.save(prefixed("module.")(source.state_dict()), tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        state = build_model(gated, num_classes=10, init_from=str(tmp_path / "w.pt")).state_dict()
    before = len(source.state_dict())
    expected = source if gated == "senet18" else insert_se(source)  # of which the names are known to be right
    weights = {key: value for key, value in expected.state_dict().items() if "fc1." not in key and "fc2." not in key}
    assert len(weights) == before
    assert all(torch.equal(state[key], value) for key, value in weights.items())
    [line] = [record.getMessage() for record in caplog.records]
    assert "w.pt is of the network without gates: all" in line


def test_weights_with_some_gates_are_of_another_network(tmp_path: Path) -> None:
    state = build_model("senet18", num_classes=10).state_dict()
    del state["layer1.0.se.fc1.weight"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"another network: layer1\.0\.se\.fc1\.weight is missing there$"):
        build_model("senet18", num_classes=10, init_from=str(tmp_path / "w.pt"))
    torch.save(build_model("senet18", num_classes=10).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ConfigError, match=r"another network: layer1\.0\.se\.fc1\.weight is unknown here \(and 31 more\)"
    ):
        build_model("preact_resnet18", num_classes=10, init_from=str(tmp_path / "w.pt"))


def test_a_run_directory_stands_for_its_best_checkpoint(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "run", "train.epochs=2", "train.global_batch_size=512")
    best = rows(tmp_path / "run", "epoch")[-1]["best_epoch"] - 1
    for path in (tmp_path / "run", checkpoints(tmp_path / "run")[best]):
        model = build_model(TINY, num_classes=10, init_from=str(path))
        assert torch.equal(model.linear.weight, payload(tmp_path / "run", best)["model"]["linear.weight"])
    checkpoints(tmp_path / "run")[best].write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model\.init_from=.*/run: .* do not match the sha256"):
        build_model(TINY, num_classes=10, init_from=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"model\.init_from=.*: no checkpoints in"):
        build_model(TINY, num_classes=10, init_from=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"args": argparse.Namespace(a=1)}, "it holds a argparse.Namespace, which is neither a tensor nor"),
        ({"best": np.float64(3)}, "it holds a numpy._core.multiarray.scalar"),
        (nn.Linear(2, 2), "it holds a torch.nn.modules.linear.Linear"),
        ([torch.zeros(3)], "holds no state dict (but list)"),
        ({"epoch": 3, "optimizer": {}}, "holds no state dict (but epoch, optimizer)"),
        ({}, "holds no state dict (but dict)"),
    ],
)
def test_a_file_without_weights_is_refused_with_the_cause(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError) as caught:
        build_model(TINY, num_classes=10, init_from=str(tmp_path / "w.pt"))
    assert reason in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_an_old_or_a_cut_file_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(torch.zeros(100), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-50])
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "empty.pt").touch()
    for name, reason in (
        ("cut", "failed finding central directory"),
        ("old", "Unsupported operand"),
        ("empty", "EOFError"),
    ):
        with pytest.raises(ConfigError, match=rf"{name}\.pt is no file of weights \(.*{reason}") as caught:
            build_model(TINY, num_classes=10, init_from=str(tmp_path / f"{name}.pt"))
        assert "\n" not in str(caught.value)
