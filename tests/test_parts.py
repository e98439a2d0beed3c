"""Parts of a network by name: frozen ones keep their bits, others have rates of their own."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from senet.data.samplers import ImageData
from senet.errors import ConfigError
from senet.models.parts import freeze, frozen_names, select
from senet.models.zoo import build_model
from senet.training.optim import build_average, build_optimizer
from senet.training.run import run
from senet.training.seeds import seed_everything
from tests import networks
from tests.conftest import Train
from tests.harness import (
    StopAt,
    checkpoints,
    differing,
    free_port,
    kill_all,
    payload,
    rows,
    run_ranks,
    started,
    status,
    tiny,
    tiny_config,
    train,
    train_command,
    wait_until,
    without_clock,
)

FROZEN = ("conv1", "bn1", "layer1.*", "'layer2.0.bn?'")
FREEZE = f"optim.freeze=[{','.join(FROZEN)}]"
KEPT = ("conv1.", "bn1.", "layer1.", "layer2.0.bn1.", "layer2.0.bn2.")
"""How the names in a state dict begin that FREEZE is to keep: parameters, running statistics, counters."""


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("linear", ["linear.weight", "linear.bias"]),
        ("linear.*", ["linear.weight", "linear.bias"]),
        ("*.bias", ["bn.bias", "deep.1.bias", "linear.bias"]),
        ("deep.?", ["deep.0.weight", "deep.1.weight", "deep.1.bias"]),
        ("d*1", ["deep.1.weight", "deep.1.bias"]),
        ("[bl]*.weight", ["bn.weight", "linear.weight"]),
        ("bn.weight", ["bn.weight"]),
    ],
)
def test_a_pattern_matches_a_name_or_that_of_a_module_above(pattern: str, matched: list[str]) -> None:
    network = nn.Module()
    network.bn, network.linear = nn.BatchNorm2d(1), nn.Linear(1, 1)
    network.deep = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    assert set(select(network, [pattern], "optim.freeze")[pattern]) == set(matched)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "optim.freeze=[conv1,layr1.*]",
            r"optim\.freeze: 'layr1\.\*' matches no parameter .*; did you mean 'layer1'\?",
        ),
        ("optim.freeze=[layer]", r"'layer' matches no parameter of the network; did you mean 'layer"),
        ("optim.freeze=['*.running_mean']", r"'\*\.running_mean' matches no parameter of the network; "),
        ("optim.freeze=[fc]", r"'fc' matches no parameter .*; the network has conv1, bn1, layer1, .*linear$"),
        ("optim.freeze=['*']", "leaves no parameter to train"),
        ("optim.lr_scale.head=0.1", r"optim\.lr_scale: 'head' matches no parameter"),
        (
            "optim.lr_scale.layer1=0.1 optim.lr_scale.*.bias=2",
            r"'layer1' and '\*\.bias' both match layer1\.0\.bn2\.bias",
        ),
        ("optim.freeze=[conv1] optim.lr_scale.conv1=2", "'conv1' matches only what is frozen, e.g. conv1.weight"),
    ],
)
@pytest.mark.parametrize("model", ["senet18", "tests.networks:tiny_senet"])
def test_what_matches_nothing_is_refused_with_what_is_near(
    options: str, message: str, model: str, train_here: Train, tmp_path: Path
) -> None:
    def no_images(*_: Any, **__: Any) -> ImageData:
        pytest.fail("read the images first")

    early = {"open_images": no_images} if model == "senet18" else {}  # somebody's own is built when they are open
    with pytest.raises(ConfigError, match=message):
        train_here(tmp_path / "run", f"model.name={model}", *options.split(), **early)
    assert not (tmp_path / "run").exists()


def test_a_factor_is_above_zero() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr_scale\.fc=0\.0 is out of range.*optim\.freeze=\[fc\]"):
        tiny_config("optim.lr_scale.fc=0")
    with pytest.raises(ConfigError, match=r"optim\.lr_scale\.fc=inf is out of range: it must be > 0 and finite$"):
        tiny_config("optim.lr_scale.fc=inf")


@pytest.mark.parametrize("name", ["sgd", "muon", "adamw"])
def test_a_factor_multiplies_the_rate_of_each_group_and_nothing_else(name: str) -> None:
    network = networks.tiny_senet(10)
    plain = tiny_config(f"optim.name={name}", "optim.bias_lr=0.2").optim
    scaled = tiny_config(
        f"optim.name={name}", "optim.bias_lr=0.2", "optim.lr_scale.layer4.*=0.5", "optim.lr_scale={linear: 10}"
    ).optim
    before, after = ({p: group for group in build_optimizer(network, o).param_groups for p in group["params"]}
                     for o in (plain, scaled))  # fmt: skip
    assert before.keys() == after.keys()
    for part, parameter in network.named_parameters():
        factor = {"layer4": 0.5, "linear": 10.0}.get(part.partition(".")[0], 1.0)
        ours, others = after[parameter], before[parameter]
        assert ours["initial_lr"] == others["initial_lr"] * factor
        unlike = {key for key in ours.keys() | others.keys() if ours.get(key) != others.get(key)} - {"params"}
        assert unlike <= {"initial_lr"}


def test_a_run_with_a_factor_is_one_whose_gradient_of_that_part_is_as_much_larger(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD without decay is linear in the gradient; powers of two round nothing."""
    options = ("model.name=tests.networks:no_norm", "train.amp=off", "train.epochs=1", "optim.weight_decay=0")
    train_here(tmp_path / "rate", *options, "optim.lr_scale={linear: 4, features.0: 0.5}")

    def with_hooks(*args: Any, **kwargs: Any) -> nn.Module:
        network = build_model(*args, **kwargs)
        for name, parameter in network.named_parameters():
            factor = 4.0 if name.startswith("linear") else 0.5 if name.startswith("features.0") else 1.0
            parameter.register_hook(lambda gradient, factor=factor: gradient * factor)
        return network

    monkeypatch.setattr("senet.training.prepare.build_model", with_hooks)
    train_here(tmp_path / "gradient", *options)
    assert differing(payload(tmp_path / "rate")["model"], payload(tmp_path / "gradient")["model"]) == []


def initial(model: str = "tests.networks:tiny_senet") -> dict[str, Tensor]:
    seed_everything(tiny_config().seed)
    return build_model(model, num_classes=10).to(memory_format=torch.channels_last).state_dict()


def keeps_its_bits(saved: dict[str, Any], kept: tuple[str, ...] = KEPT) -> None:
    """Of a checkpoint: what is frozen is as it was at first, averaged too, and has no state; all else has moved."""
    begun = initial()
    parts = [name for name in begun if name.startswith(kept)]
    for weights in (saved["model"], saved["ema"]["model"]):
        assert differing({n: weights[n] for n in parts}, {n: begun[n] for n in parts}) == []
        others = [name for name in begun if name not in parts]
        moved = differing({n: weights[n] for n in others}, {n: begun[n] for n in others})
        assert len(moved) == len(others)
    trained = [n for n, _ in build_model("tests.networks:tiny_senet", num_classes=10).named_parameters()
               if n not in parts]  # fmt: skip
    assert len(saved["optimizer"]["state"]) == len(trained)


def test_the_parts_that_are_kept_are_parameters_and_statistics() -> None:
    assert any(name.startswith(KEPT) and name.endswith("running_mean") for name in initial())
    assert frozen_names(networks.tiny_senet(10), tiny_config(FREEZE).optim.freeze) == {
        name for name in initial() if name.startswith(KEPT)
    }
    only_half = frozen_names(networks.tiny_senet(10), ["bn1.weight"])  # its bias is trained: so are its statistics
    assert only_half == {"bn1.weight"}


@pytest.mark.parametrize("options", ["", "train.shards=4 optim.name=muon", "optim.name=adamw train.accumulate=2"])
def test_a_frozen_layer_keeps_its_bits_through_a_stop_and_a_resume(
    options: str, train_here: Train, tmp_path: Path
) -> None:
    train_here(tmp_path / "whole", FREEZE, *options.split())
    assert train_here(tmp_path / "parts", FREEZE, *options.split(), stop=StopAt(13)).state == "stopped"
    train_here(tmp_path / "parts", FREEZE, *options.split())
    whole, parts = (without_clock(payload(tmp_path / name)) for name in ("whole", "parts"))
    assert differing(whole, parts) == []
    keeps_its_bits(whole)


def test_a_frozen_norm_computes_with_its_running_statistics(train_here: Train, tmp_path: Path) -> None:
    """Beside a network of one's own whose norm never leaves evaluation mode: the same bits."""
    options = ("train.amp=off", "train.epochs=1")
    train_here(tmp_path / "option", "model.name=tests.networks:norm_and_dropout", "optim.freeze=[1]", *options)
    train_here(tmp_path / "own", "model.name=tests.networks:with_frozen_norm", *options)
    assert differing(payload(tmp_path / "option")["model"], payload(tmp_path / "own")["model"]) == []


def test_a_norm_without_parameters_is_frozen_by_its_name() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    assert frozen_names(nn.Sequential(network, nn.Linear(2, 2)), ["0"]) == {
        "0.0.running_mean", "0.0.running_var", "0.0.num_batches_tracked", "0.1.weight", "0.1.bias",
    }  # fmt: skip
    assert frozen_names(network, ["1"]) == {"1.weight", "1.bias"}


def test_the_average_keeps_the_sign_of_a_frozen_zero() -> None:
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(-0.0)
        network.bias.fill_(-0.0)
    average = build_average(network, 0.9, frozen={"weight"})
    assert average is not None
    for _ in range(20):
        average.update_parameters(network)
    signs = {name: bool(torch.signbit(value).all()) for name, value in average.module.state_dict().items()}
    assert signs == {"weight": True, "bias": False}


def test_a_whitened_first_layer_may_be_frozen_beside_others(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "a", "model.whiten=true", "train.epochs=1", "optim.freeze=[bn1]")
    train_here(tmp_path / "b", "model.whiten=true", "train.epochs=1", "optim.freeze=[bn1,conv1]")
    assert differing(payload(tmp_path / "a")["model"], payload(tmp_path / "b")["model"]) == []


def test_what_is_frozen_cannot_change_in_the_middle_of_a_run_but_factors_can(train_here: Train, tmp_path: Path) -> None:
    options = ("model.name=tests.networks:no_norm", "resume.allow_changes=true")
    train_here(tmp_path, *options, "optim.freeze=[features.0]", "optim.lr_scale={linear: 2}", stop=StopAt(5))
    with pytest.raises(
        ConfigError, match=r"has optim\.freeze=\['features\.0'\], this command gives \[\]; undo the change"
    ):
        train_here(tmp_path, *options, "optim.lr_scale={linear: 2}")
    with pytest.raises(ConfigError, match=r"has optim\.lr_scale=\['linear'\], this command gives \[\]"):
        train_here(tmp_path, *options, "optim.freeze=[features.0]")
    train_here(tmp_path, *options, "optim.freeze=[features.0]", "optim.lr_scale={linear: 3}")
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert starts[-1]["changed"] == {"optim.lr_scale": [{"linear": 2.0}, {"linear": 3.0}]}
    groups = payload(tmp_path)["optimizer"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.1, 0.3, 0.1, 0.3])


def test_freezing_is_what_requires_grad_does() -> None:
    one, other = networks.tiny_senet(10), networks.tiny_senet(10)
    freeze(one, ["layer1", "conv1"])
    other.layer1.requires_grad_(False)
    other.conv1.requires_grad_(False)
    assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in other.parameters()]
    assert copy.deepcopy(one).conv1.weight.requires_grad is False


def _train(folder: str, root: str, stop: int, port: int, options: list[str]) -> None:
    os.environ["MASTER_PORT"] = str(port)
    here = [FREEZE, f"run_dir={folder}", f"data.root={root}", *options]
    run(tiny_config(*here, world_size=int(os.environ["WORLD_SIZE"])), tiny(*here), StopAt(stop))


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("shards", [0, 4])
def test_a_frozen_layer_keeps_its_bits_on_one_two_and_four_ranks(shards: int, data_root: Path, tmp_path: Path) -> None:
    """Each stopped once; with shards also a run of 4 ranks, then 2, then 1."""
    options = [f"train.shards={shards}", "optim.lr_scale.linear=2"]
    starts = {f"{ranks}": [(ranks, 9), (ranks, 10**6)] for ranks in (1, 2, 4)}
    if shards:
        starts["fewer"] = [(4, 9), (2, 9), (1, 10**6)]
    for name, parts in starts.items():
        for ranks, stop in parts:
            arguments = (str(tmp_path / name), str(data_root), stop, free_port(), options)
            run_ranks(ranks, _train, *arguments, tmp_path=tmp_path / f"{name}-{ranks}-{stop}")
        keeps_its_bits(payload(tmp_path / name))
    if shards:
        first, *others = (without_clock(payload(tmp_path / name)) for name in starts)
        assert [differing(first, other) for other in others] == [[], [], []]


@pytest.mark.ranks
@pytest.mark.slow
def test_a_frozen_layer_keeps_its_bits_through_a_kill_of_two_ranks(data_root: Path, tmp_path: Path) -> None:
    options = tiny(
        FREEZE, f"data.root={data_root}", f"run_dir={tmp_path / 'run'}", "log.every_steps=1", "train.epochs=6"
    )
    with started(train_command(2, options), tmp_path / "log") as process:
        wait_until(lambda: len(rows(tmp_path / "run")) > 8 and checkpoints(tmp_path / "run"))
        kill_all(process)
    assert status(tmp_path / "run")["state"] == "running"
    assert train(2, *options).returncode == 0
    keeps_its_bits(payload(tmp_path / "run"))
