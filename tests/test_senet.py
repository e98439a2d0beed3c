"""The network against its published numbers and an independent forward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.errors import ConfigError
from senet.models.senet import BasicBlock, PreActBlock, SENet, SENet18, SqueezeExcite
from senet.models.weights import whiten_first_layer
from senet.models.zoo import build_model

STRIDES = {1: 1, 2: 2, 3: 2, 4: 2}


def flat_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of github.com/kuangliu/pytorch-cifar: ``fc1`` and ``fc2`` directly in the block."""
    return {key.replace(".se.", "."): value for key, value in state.items()}


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])


def gate(w: dict[str, Tensor], block: str, x: Tensor) -> Tensor:
    g = F.avg_pool2d(x, x.shape[2:])
    g = F.relu(F.conv2d(g, w[f"{block}.fc1.weight"], w[f"{block}.fc1.bias"]))
    return torch.sigmoid(F.conv2d(g, w[f"{block}.fc2.weight"], w[f"{block}.fc2.bias"]))


def reference_logits(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """SENet18 in evaluation mode, written from the layout of the public state dicts."""
    x = F.relu(norm(w, "bn1", F.conv2d(x, w["conv1.weight"], padding=1)))
    for stage in range(1, 5):
        for index in range(2):
            name, stride = f"layer{stage}.{index}", STRIDES[stage] if index == 0 else 1
            out = F.relu(norm(w, f"{name}.bn1", x))
            key = f"{name}.shortcut.0.weight"
            shortcut = F.conv2d(out, w[key], stride=stride) if key in w else x
            out = F.conv2d(out, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(F.relu(norm(w, f"{name}.bn2", out)), w[f"{name}.conv2.weight"], padding=1)
            x = out * gate(w, name, out) + shortcut
    return F.linear(F.avg_pool2d(x, 4).flatten(1), w["linear.weight"], w["linear.bias"])


def randomised(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters that are not 0 and 1."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def test_senet18_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in SENet18(num_classes=10).parameters()) == 11_260_354


def test_stage_outputs_have_the_published_shapes() -> None:
    model, shapes = SENet18().eval(), []
    for stage in range(1, 5):
        model.get_submodule(f"layer{stage}").register_forward_hook(
            lambda _m, _i, out: shapes.append(tuple(out.shape[1:]))
        )
    model(torch.zeros(1, 3, 32, 32))
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("size", [(16, 16), (28, 28), (33, 47), (64, 64)])
def test_any_size_from_16_works(size: tuple[int, int]) -> None:
    assert SENet18(num_classes=7).eval()(torch.zeros(2, 3, *size)).shape == (2, 7)


def test_public_state_dicts_load_and_give_the_same_logits() -> None:
    public = flat_keys(randomised(SENet18()).state_dict())
    assert {"layer1.0.fc1.weight", "layer2.0.shortcut.0.weight", "layer4.1.fc2.bias"} < public.keys()
    assert not any(".se." in key for key in public)
    model = SENet18()
    model.load_state_dict(public)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), reference_logits(public, images), rtol=1e-5, atol=1e-5)


def test_squeeze_excite_scales_channels_by_hand() -> None:
    layer = SqueezeExcite(2, reduction=2)
    nn.init.constant_(layer.fc1.weight, 1.0)
    nn.init.constant_(layer.fc1.bias, -1.0)
    nn.init.constant_(layer.fc2.weight, 2.0)
    nn.init.constant_(layer.fc2.bias, 0.0)
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])  # channel means 2 and 1
    torch.testing.assert_close(layer(x), x * torch.sigmoid(torch.tensor(4.0)))  # 2 * relu(2 + 1 - 1)
    torch.testing.assert_close(layer.gate(x), torch.sigmoid(torch.tensor(4.0)).expand(1, 2, 1, 1))


def test_basic_block_excites_before_the_addition() -> None:
    block = randomised(BasicBlock(8, 16, stride=2, reduction=4)).eval()
    w = flat_keys({f"b.{key}": value for key, value in block.state_dict().items()})
    x = torch.randn(2, 8, 8, 8)
    out = F.relu(norm(w, "b.bn1", F.conv2d(x, w["b.conv1.weight"], stride=2, padding=1)))
    out = norm(w, "b.bn2", F.conv2d(out, w["b.conv2.weight"], padding=1))
    shortcut = norm(w, "b.shortcut.1", F.conv2d(x, w["b.shortcut.0.weight"], stride=2))
    with torch.inference_mode():
        torch.testing.assert_close(block(x), F.relu(out * gate(w, "b", out) + shortcut))
    block.load_state_dict(flat_keys(block.state_dict()))


def test_other_depths_and_widths_can_be_built() -> None:
    model = SENet(BasicBlock, [1, 2, 1], num_classes=3, widths=(8, 16, 24), reduction=8)
    assert model(torch.zeros(2, 3, 20, 20)).shape == (2, 3)
    assert isinstance(model.get_submodule("layer2.1"), BasicBlock)
    assert PreActBlock(8, 8).shortcut is None


def test_somebody_elses_function_builds_the_network() -> None:
    assert build_model("tests.networks:no_norm", num_classes=3)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


def test_a_bug_inside_somebodys_function_is_told_in_a_line_with_its_place_and_what_it_was_given() -> None:
    with pytest.raises(ConfigError, match=r"^model\.name=\S+:fails_inside failed: AttributeError: .*nothing"):
        build_model("tests.networks:fails_inside", num_classes=10)
    words = r"^model\.name=\S+ with model\.args\.widths=3 failed: TypeError: .*, at tests/networks\.py:\d+ of_width;"
    with pytest.raises(ConfigError, match=words):
        build_model("tests.networks:of_width", num_classes=10, arguments={"widths": 3})


@pytest.mark.parametrize("name", ["nowhere:f", "tests.networks:nothing", "tests.harness:free_port", "json:dumps"])
def test_a_function_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model.name={name}"):
        build_model(name, num_classes=10)


def test_a_whitening_first_layer_gives_uncorrelated_outputs_of_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.avg_pool2d(torch.randn(64, 3, 36, 36, generator=generator), 3, stride=1, padding=0)  # neighbours alike
    model = SENet18(10)
    before = model.conv1.weight[54:].clone()
    whiten_first_layer(model, images)
    assert not model.conv1.weight.requires_grad
    outputs = F.conv2d(images, model.conv1.weight)[:, :54].movedim(1, 0).flatten(1)
    covariance = outputs[::2].cov()
    kept = covariance.diagonal() > 0.5  # eigenvalues well above the floor of 5e-4
    assert int(kept.sum()) >= 9
    torch.testing.assert_close(covariance[kept][:, kept], torch.eye(int(kept.sum())), atol=0.2, rtol=0)
    assert torch.equal(outputs[1::2], -outputs[::2])
    assert torch.equal(model.conv1.weight[54:], before)


def test_a_network_without_a_convolution_of_images_cannot_be_whitened() -> None:
    with pytest.raises(ConfigError, match="begins with a convolution of 3 channels"):
        whiten_first_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)), torch.zeros(2, 3, 16, 16))
