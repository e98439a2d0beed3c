"""Parameter groups, and Muon beside torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from senet.training.optim import build_optimizer, load_optimizer
from tests.harness import tiny_config


def small_network(channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip
    return layers.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_is_that_of_torch_for_kernels_and_sgd_for_the_rest(channels_last: bool) -> None:
    ours = small_network(channels_last)
    theirs = copy.deepcopy(ours)
    options = ("optim.name=muon", "optim.muon_lr=0.03", "optim.muon_momentum=0.8", "optim.muon_weight_decay=0.1")
    config = tiny_config(*options, "optim.bias_lr=0.3").optim
    optimizer = build_optimizer(ours, config)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    kernel = nn.Parameter(theirs[0].weight.detach().movedim(1, -1).flatten(1).clone())
    muon = torch.optim.Muon([kernel], lr=0.03, momentum=0.8, weight_decay=0.1, nesterov=True)
    others = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1 and p is not theirs[0].weight], "lr": config.lr},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "lr": 0.3, "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(others, momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay)
    for step in range(3):
        images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for network in (ours, theirs):
            nn.functional.cross_entropy(network(images), torch.arange(16) % 10).backward()
        kernel.grad = theirs[0].weight.grad.movedim(1, -1).flatten(1)
        for each in (optimizer, muon, sgd):
            each.step()
        theirs[0].weight.data.copy_(kernel.detach().view(8, 3, 3, 3).movedim(-1, 1))
        ours.zero_grad()
        theirs.zero_grad()
    # bf16 inside: the order of the columns differs where the layout does
    torch.testing.assert_close(ours[0].weight, theirs[0].weight, atol=0.0 if channels_last else 2e-3, rtol=0)
    for mine, other in zip(list(ours.parameters())[1:], list(theirs.parameters())[1:], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6 if channels_last else 5e-3, rtol=0)


def test_muon_goes_on_from_its_state() -> None:
    def train(network: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    config = tiny_config("optim.name=muon").optim
    network = small_network(channels_last=True)
    optimizer = build_optimizer(network, config)
    train(network, optimizer, 0)
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    train(network, optimizer, 1)
    resumed = small_network(channels_last=True)
    resumed.load_state_dict(saved[0])
    other = build_optimizer(resumed, config)
    other.load_state_dict(saved[1])
    train(resumed, other, 1)
    for mine, expected in zip(resumed.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_what_is_frozen_is_in_no_group() -> None:
    network = small_network(channels_last=False)
    network[0].weight.requires_grad_(False)
    for name in ("sgd", "adamw", "muon"):
        held = [
            p
            for group in build_optimizer(network, tiny_config(f"optim.name={name}").optim).param_groups
            for p in group["params"]
        ]
        assert len(held) == len(list(network.parameters())) - 1


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_state_from_another_memory_layout_is_laid_anew(name: str, channels_last: bool) -> None:
    def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()

    config = tiny_config(f"optim.name={name}").optim
    network, moved = small_network(not channels_last), small_network(channels_last)
    optimizer, resumed = (build_optimizer(each, config, fused=True) for each in (network, moved))
    step(network, optimizer, 0)
    moved.load_state_dict(network.state_dict())
    load_optimizer(resumed, copy.deepcopy(optimizer.state_dict()))
    for each in (network, moved):
        step(each, resumed if each is moved else optimizer, 1)
    for mine, expected in zip(moved.parameters(), network.parameters(), strict=True):
        # Muon's products are in bf16, and the order of the columns differs
        torch.testing.assert_close(mine, expected, atol=2e-3 if name == "muon" else 1e-6, rtol=0, check_stride=False)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_update_is_that_of_the_plain_one(name: str) -> None:
    config = tiny_config(f"optim.name={name}").optim
    networks = [small_network(channels_last=True) for _ in range(2)]
    optimizers = [
        build_optimizer(each, config, fused=fused) for each, fused in zip(networks, (True, False), strict=True)
    ]
    assert [optimizer.param_groups[0]["fused"] for optimizer in optimizers] == [True, False]
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for network, optimizer in zip(networks, optimizers, strict=True):
            network(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, expected in zip(*(each.parameters() for each in networks), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


def test_parameters_of_another_kind_are_not_fused() -> None:
    config = tiny_config().optim
    transposed = small_network(True)
    transposed[0].weight = nn.Parameter(transposed[0].weight.detach().transpose(2, 3))
    for network in (small_network(True).bfloat16(), transposed):
        groups = build_optimizer(network, config, fused=True).param_groups
        assert not any(group["fused"] for group in groups)


def test_an_optimizer_goes_on_with_the_options_of_this_run() -> None:
    before, now = (tiny_config(f"optim.weight_decay={decay}").optim for decay in (0.1, 0.2))
    saved = build_optimizer(small_network(True), before).state_dict()
    for group in saved["param_groups"]:  # as older versions wrote it
        del group["fused"]
    optimizer = build_optimizer(small_network(True), now, fused=True)
    load_optimizer(optimizer, saved)
    assert [(group["weight_decay"], group["fused"]) for group in optimizer.param_groups] == [(0.2, True), (0.0, True)]


def test_the_groups_of_a_checkpoint_depend_on_one_option_only() -> None:
    network = small_network(channels_last=False)
    for decay in (0.0, 5e-4):
        groups = build_optimizer(network, tiny_config(f"optim.weight_decay={decay}").optim).param_groups
        assert [len(group["params"]) for group in groups] == [3, 4]


def test_the_rate_of_the_last_update_stays_where_none_is_left() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, tiny_config("optim.lr=0.1").optim)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["lr"] = 0.002  # of the last update, before a stop in the last evaluation
    load_optimizer(optimizer, saved)
    assert {group["lr"] for group in optimizer.param_groups} == {0.002}
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.1}
