"""Every network by name, and gates put into other networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from senet.config.manual import help_text
from senet.config.options import CIFAR_RESNETS, NETWORKS
from senet.data.samplers import ImageData
from senet.errors import ConfigError
from senet.inference.network import load_trained
from senet.models.senet import SENet, SENet18, SqueezeExcite, insert_se
from senet.models.zoo import build_model, trains_on_one_image
from senet.rundir.history import judged
from tests.conftest import Train
from tests.harness import checkpoints, edit_manifest, rows

TWINS = [name for name in NETWORKS if f"se_{name}" in NETWORKS]


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Built on the meta device, without memory."""
    with torch.device("meta"):
        return build()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def gates(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SqueezeExcite)]


def by_hand(gate: SqueezeExcite, x: Tensor) -> Tensor:
    hidden = F.relu(F.adaptive_avg_pool2d(x, 1).flatten(1) @ gate.fc1.weight.flatten(1).T + gate.fc1.bias)
    return torch.sigmoid(hidden @ gate.fc2.weight.flatten(1).T + gate.fc2.bias)[:, :, None, None]


def test_the_manual_names_every_network() -> None:
    words = help_text(["model"]).replace(",", " ").replace(".", " ").replace(";", " ").split()
    assert {"senet18", "preact_resnet18", *TWINS} <= set(words)
    assert set(NETWORKS) == {"senet18", "preact_resnet18", *TWINS, *(f"se_{name}" for name in TWINS)}


@pytest.mark.parametrize("name", TWINS)
def test_every_network_has_a_twin_with_a_gate_in_each_block(name: str) -> None:
    blocks = {"googlenet": 9, "inception_v3": 11, "resnet18": 8, "resnet152": 50}
    blocks |= {name: (int(name.removeprefix("resnet")) - 2) // 2 for name in CIFAR_RESNETS}
    expected = blocks.get(name, 33 if "101" in name else 16)
    assert len(gates(on_meta(lambda: build_model(f"se_{name}", num_classes=10)))) == expected
    assert gates(on_meta(lambda: build_model(name, num_classes=10))) == []


KINDS = ["preact_resnet18", "se_resnet34", "se_resnet50", "se_resnext50_32x4d", "se_wide_resnet50_2", "se_googlenet"]


@pytest.mark.parametrize("name", [*KINDS, "se_inception_v3", "se_resnet20"])
def test_every_kind_gives_logits_and_each_parameter_a_gradient(name: str) -> None:
    """In training, two images: what DDP needs. Depths of a kind differ in nothing but the number of blocks."""
    model = on_meta(lambda: build_model(name, num_classes=10))
    size = 75 if name == "se_inception_v3" else 32
    logits = model(torch.zeros(2, 3, size, size, device="meta"))
    assert logits.shape == (2, 10)
    logits.sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_se_resnet50_has_the_published_number_of_parameters() -> None:
    """28.1 M against 25.6 M; 28,088,024 with biases, as here, 28,071,976 as the paper counts (sec. 4: 2/r sum C^2)."""
    plain = on_meta(torchvision.models.resnet50)
    assert parameters(plain) == 25_557_032
    gated = on_meta(lambda: insert_se(copy.deepcopy(plain)))
    assert parameters(gated) == 28_088_024
    biases = sum(gated.get_submodule(name).fc1.out_channels for name in gates(gated))
    biases += sum(gated.get_submodule(name).fc2.out_channels for name in gates(gated))
    paper = sum(
        2 * count * channels**2 // 16 for count, channels in zip([3, 4, 6, 3], [256, 512, 1024, 2048], strict=True)
    )
    assert 28_088_024 - biases == 28_071_976 == 25_557_032 + paper
    without_last = on_meta(lambda: insert_se(copy.deepcopy(plain), skip_last_stage=True))
    assert parameters(without_last) == 26_508_632
    assert (paper, 28_088_024 / 25_557_032, 26_508_632 / 25_557_032) == pytest.approx(
        (2_514_944, 1.0990, 1.0372), rel=1e-4
    )


@pytest.mark.parametrize(
    ("name", "plain", "gated"),
    [
        ("resnet20", 269_722, 272_095),
        ("resnet32", 464_154, 468_109),
        ("resnet44", 658_586, 664_123),
        ("resnet56", 853_018, 860_137),
        ("resnet110", 1_727_962, 1_742_200),
    ],
)
def test_cifar_resnets_have_the_published_number_of_parameters(name: str, plain: int, gated: int) -> None:
    """0.27, 0.46, 0.66, 0.85 and 1.7 M (He et al. 2016, table 6), and what the formula for a gate adds to them."""
    blocks = (int(name[6:]) - 2) // 6
    assert parameters(on_meta(lambda: build_model(name, num_classes=10))) == plain
    assert parameters(on_meta(lambda: build_model(f"se_{name}", num_classes=10))) == gated
    assert gated - plain == blocks * sum(2 * c * (c // 16) + c + c // 16 for c in (16, 32, 64))


def test_the_gates_of_senet18_cost_little() -> None:
    gated, plain = on_meta(SENet18), on_meta(lambda: build_model("preact_resnet18", num_classes=10))
    gate_parameters = 2 * sum(2 * c * (c // 16) + c + c // 16 for c in (64, 128, 256, 512))
    assert (parameters(gated), parameters(plain)) == (11_260_354, 11_171_274)
    assert gate_parameters == 11_260_354 - 11_171_274
    flops = []
    for model in (plain, gated):
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 32, 32, device="meta"))
        flops.append(counter.get_total_flops())
    assert flops[1] - flops[0] == 2 * 2 * sum(2 * c * (c // 16) for c in (64, 128, 256, 512))
    multiplications = 3 * 64 * 9 * 32**2 + 512 * 10
    for before, c, side in ((64, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4)):
        multiplications += (9 * before * c + 3 * 9 * c * c + (before * c if before != c else 0)) * side**2
    assert flops[0] == 2 * multiplications == 1_110_845_440


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "googlenet", "resnet20"])
def test_open_gates_change_nothing(name: str) -> None:
    """With gates of 1 the network equals the one without, bit for bit; and both begin with the same other weights."""
    models = []
    for full_name in (name, f"se_{name}"):
        torch.manual_seed(3)
        models.append(build_model(full_name, num_classes=10).eval())
    plain, gated = models
    for key in gates(gated):
        nn.init.zeros_(gated.get_submodule(key).fc2.weight)
        nn.init.constant_(gated.get_submodule(key).fc2.bias, 100.0)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits = gated(images)
        assert torch.equal(logits, plain(images))
        nn.init.zeros_(gated.get_submodule(gates(gated)[0]).fc2.bias)
        assert not torch.equal(logits, gated(images))


def test_the_gate_stands_before_the_addition() -> None:
    x = torch.rand(2, 64, 8, 8)
    block = insert_se(torchvision.models.resnet18()).eval().layer2[0]
    [norm, gate] = block.bn2
    out = norm(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), F.relu(out * by_hand(gate, out) + block.downsample(x)))
    block = insert_se(torchvision.models.resnet50()).eval().layer1[0]
    [norm, gate] = block.bn3
    out = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
    out = norm(block.conv3(out))
    torch.testing.assert_close(block(x), F.relu(out * by_hand(gate, out) + block.downsample(x)))


def test_the_gate_stands_behind_an_inception_block() -> None:
    plain = torchvision.models.googlenet(aux_logits=True, init_weights=False).eval()
    gated = insert_se(copy.deepcopy(plain), reduction=8)
    assert gates(gated) == [f"inception{block}.1" for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    x = torch.rand(2, 192, 6, 6)
    out = plain.inception3a(x)
    assert gated.inception3a[1].fc1.out_channels == 256 // 8
    torch.testing.assert_close(gated.inception3a(x), out * by_hand(gated.inception3a[1], out))


@pytest.mark.parametrize(
    ("build", "without"),
    [
        (torchvision.models.resnet18, {"layer4"}),
        (lambda: build_model("googlenet", num_classes=10), {"inception5a", "inception5b"}),
        (lambda: build_model("inception_v3", num_classes=10), {"Mixed_7a", "Mixed_7b", "Mixed_7c"}),
        (lambda: build_model("resnet20", num_classes=10), {"layer3"}),
    ],
)
def test_the_last_stage_may_go_without(build: Callable[[], nn.Module], without: set[str]) -> None:
    model = on_meta(build)
    everywhere, partly = (gates(insert_se(copy.deepcopy(model), skip_last_stage=skip)) for skip in (False, True))
    assert {name.split(".")[0] for name in set(everywhere) - set(partly)} == without
    assert set(partly) < set(everywhere)


def test_the_network_given_is_the_one_changed_and_keeps_dtype_and_weights() -> None:
    model = torchvision.models.resnet18(num_classes=3).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert insert_se(model) is model
    after = {key.replace("bn2.0.", "bn2."): value for key, value in model.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


def test_a_network_without_blocks_or_with_gates_is_refused() -> None:
    with pytest.raises(ConfigError, match="VGG has no blocks"):
        insert_se(on_meta(torchvision.models.vgg11))
    with pytest.raises(ConfigError, match="SENet has gates already"):
        insert_se(SENet18())


def test_padded_shortcuts_are_strided_pixels_and_zeros() -> None:
    torch.manual_seed(1)
    model = build_model("resnet20", num_classes=10).eval()
    assert isinstance(model, SENet)
    block, x = model.get_submodule("layer2.0"), torch.randn(2, 16, 6, 6)
    expected = torch.zeros(2, 32, 3, 3)
    for channel in range(16):
        for row in range(3):
            expected[:, channel, row] = x[:, channel, 2 * row, [0, 2, 4]]
    out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), F.relu(out + expected))


def test_a_small_stem_keeps_height_and_width() -> None:
    model = build_model("resnet18", num_classes=10, small_stem=True)
    assert parameters(model) == 11_173_962  # of ResNet18 in github.com/kuangliu/pytorch-cifar
    shapes: list[tuple[int, ...]] = []
    for stage in range(1, 5):
        model.get_submodule(f"layer{stage}").register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[1:]))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_reduction_reaches_the_gates() -> None:
    for name in ("senet18", "se_resnet18"):
        model = build_model(name, num_classes=10, reduction=4)
        assert [model.get_submodule(key).fc1.out_channels for key in gates(model)][::2] == [16, 32, 64, 128]


@pytest.mark.slow
def test_a_named_network_trains_resumes_and_is_opened_again(
    train_here: Train, digits: ImageData, tmp_path: Path
) -> None:
    options = (
        "model.name=se_resnet20",
        "model.reduction=8",
        "train.epochs=1",
        "train.global_batch_size=256",
        "train.amp=off",
    )
    train_here(tmp_path, *options)
    trained = load_trained(tmp_path, device="cpu")
    hits = int((trained.logits(torch.tensor(digits.test.images)).argmax(1) == digits.test.labels).sum())
    [row] = rows(tmp_path, "epoch")
    assert 100 * hits / len(digits.test) == row[f"{judged(row)}_top1"]
    assert train_here(tmp_path, *options).state == "finished"
    with pytest.raises(ConfigError, match=r"model\.reduction: 8 -> 16"):
        train_here(tmp_path, *(option for option in options if "reduction" not in option))


def test_a_checkpoint_from_before_the_options_of_networks_is_still_good(train_here: Train, tmp_path: Path) -> None:
    name = "tests.networks:tiny_senet"
    options = ("train.epochs=1", "train.global_batch_size=512")
    train_here(tmp_path, *options)
    younger = ("model.reduction", "model.small_stem")
    for path in checkpoints(tmp_path):
        edit_manifest(path, lambda manifest: [manifest["config"].pop(key) for key in younger])
    assert load_trained(tmp_path, model_name=name, device="cpu").classes[0] == "0"
    assert train_here(tmp_path, *options).state == "finished"


@pytest.mark.parametrize(
    ("name", "size", "trains"),
    [("resnet18", 32, False), ("resnet18", 64, True), ("se_resnet18", 16, False), ("senet18", 32, True)],
)
def test_one_image_at_a_time_is_no_batch_for_a_norm_over_1x1_maps(name: str, size: int, trains: bool) -> None:
    model = build_model(name, num_classes=10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert trains_on_one_image(model, size) is trains
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    logits = model(torch.zeros(2, 3, size, size))  # with two it can
    assert logits.shape == (2, 10)


def test_one_image_per_micro_batch_is_refused_where_the_network_needs_two(train_here: Train, tmp_path: Path) -> None:
    options = ("model.name=resnet18", "train.global_batch_size=2", "train.accumulate=2")
    with pytest.raises(ConfigError, match=r"global_batch_size=2 is one image per rank and micro-batch.* use 4 or more"):
        train_here(tmp_path, *options)
    with pytest.raises(ConfigError, match="one image per rank"):  # maps of 1x1 in the first epochs only
        train_here(
            tmp_path,
            "model.name=resnet18",
            "train.global_batch_size=1",
            "train.epochs=2",
            "data.source=digits",
            "data.image_size=64",
            "augment.small_size=32",
            "augment.small_epochs=1",
        )
