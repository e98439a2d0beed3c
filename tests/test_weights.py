"""model.init_from: which files it reads, which layers stay random, what it refuses."""

from __future__ import annotations

import argparse
import logging
import pickle
import types
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from senet.errors import ConfigError
from senet.models.senet import insert_se
from senet.models.zoo import build_model
from senet.rundir.files import read_rows
from tests.conftest import Train
from tests.harness import checkpoints, differing, payload, rows, tiny, train

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
        ({"args": types.SimpleNamespace(a=1)}, "it holds a types.SimpleNamespace, which is neither a tensor nor"),
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


@pytest.mark.parametrize("name", ["w.safetensors", "model.safetensors"])
def test_safetensors_are_read_like_a_file_of_torch(tmp_path: Path, name: str) -> None:
    """A folder with a file of the name that the Hugging Face hub has stands for this file."""
    source = build_model(UNUSUAL, num_classes=10)
    state = {key: value for key, value in source.state_dict().items() if key != "_extra_state"}
    plain = build_model("tests.networks:tiny_senet", num_classes=10)
    save_file(prefixed("module.")(plain.state_dict()), tmp_path / name)
    path = tmp_path if name.startswith("model.") else tmp_path / name
    model = build_model("tests.networks:tiny_senet", num_classes=4, init_from=str(path))
    for key, value in model.state_dict().items():
        assert key.startswith("linear.") or torch.equal(plain.state_dict()[key], value)
    save_file(state, tmp_path / name)  # without the versions of modules, which this network asks for
    with pytest.raises(ConfigError, match=r"another network: _extra_state is missing there$"):
        build_model(UNUSUAL, num_classes=10, init_from=str(path))


def test_damaged_safetensors_are_refused_in_one_line(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(9)}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-5])
    with pytest.raises(ConfigError, match=r"w\.safetensors is no file of weights \(.*incomplete metadata"):
        build_model(TINY, num_classes=10, init_from=str(tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match=r"none\.safetensors: no such file"):
        build_model(TINY, num_classes=10, init_from=str(tmp_path / "none.safetensors"))


def test_a_checkpoint_of_timms_training_is_read(tmp_path: Path) -> None:
    """As timm.utils.CheckpointSaver writes it."""
    source = build_model(TINY, num_classes=10)
    content = {
        "epoch": 3,
        "arch": "x",
        "state_dict": source.state_dict(),
        "version": 2,
        "args": argparse.Namespace(lr=1),
    }
    torch.save(content, tmp_path / "last.pth.tar")
    model = build_model(TINY, num_classes=10, init_from=str(tmp_path / "last.pth.tar"))
    assert torch.equal(model.linear.weight, source.linear.weight)


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch.hub keeps what it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("name", ["resnet18", "se_resnet18", "googlenet"])
def test_weights_of_torchvision_are_read_by_their_name(
    torch_home: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    plain = name.removeprefix("se_")
    options = {"init_weights": False} if name == "googlenet" else {}
    source = torchvision.models.get_model(plain, weights=None, **options)  # 1000 classes, and auxiliary heads
    torch_home.mkdir(parents=True)
    file = torch_home / Path(torchvision.models.get_model_weights(plain)["DEFAULT"].url).name
    torch.save(source.state_dict(), file)
    with caplog.at_level(logging.INFO):
        model = build_model(name, num_classes=10, init_from=f"torchvision:{plain}:DEFAULT")
    assert torch.equal(next(model.parameters()), next(source.parameters()))
    assert list(torch_home.iterdir()) == [file]  # nothing is written beside it: the folder may be an administrator's
    mean, std = ("[0.5,0.5,0.5]",) * 2 if name == "googlenet" else ("[0.485,0.456,0.406]", "[0.229,0.224,0.225]")
    assert f"was trained with data.mean={mean} data.std={std}" in caplog.text
    assert ("its auxiliary heads are left out" in caplog.text) == (name == "googlenet")
    assert "new last layer for 10 classes" in caplog.text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("torchvision:resnet81:DEFAULT", "torchvision has no network 'resnet81'; did you mean 'resnet18'?"),
        ("torchvision:resnet18", "torchvision has no weights '' of resnet18; there is IMAGENET1K_V1, DEFAULT"),
        ("torchvision:resnet18:BEST", "torchvision has no weights 'BEST' of resnet18; there is"),
        ("torchvision:resnet18:DEFAULT", "resnet18-f37072fd.pth cannot be had (<urlopen error no network>); where"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_one_line(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(ConfigError, match=f"^model.init_from={path}: ") as caught:
        build_model("resnet18", num_classes=10, init_from=path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (str(torch_home) in str(caught.value)) == ("cannot be had" in expected)


@pytest.mark.ranks
@pytest.mark.slow
def test_only_rank_0_reads_weights_and_only_where_a_run_begins(data_root: Path, tmp_path: Path) -> None:
    """The file is there for rank 0 alone; on two ranks the bits are those of one."""
    torch.save(build_model(TINY, num_classes=10).state_dict(), tmp_path / "w.pt")
    options = [f"data.root={data_root}", f"model.init_from={tmp_path / 'w.pt'}", "train.shards=2", "train.epochs=1"]
    for ranks in (1, 2, 2):
        done = train(ranks, *tiny(*options, f"run_dir={tmp_path / str(ranks)}"))
        assert done.returncode == 0, done.stderr
        if (tmp_path / "2").exists():
            (tmp_path / "w.pt").unlink(missing_ok=True)
    assert "this run has finished" in done.stdout + done.stderr
    one, two = payload(tmp_path / "1"), payload(tmp_path / "2")
    assert differing(one["model"], two["model"]) == differing(one["ema"], two["ema"]) == []
    starts = [row["began_with_sha256"] for name in "12" for row in read_rows(tmp_path / name / "starts.jsonl")]
    assert len(starts) == 3
    assert len(set(starts)) == 1
