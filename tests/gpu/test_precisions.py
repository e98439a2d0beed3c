"""Each precision and memory order trains as fp32 on a CPU does; other options change no bits, or little."""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from shutil import which

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from senet.config.options import DataConfig
from senet.data.samplers import load_batches, open_data
from senet.models.zoo import build_model
from senet.rundir.files import read_rows
from senet.training import run as wiring
from senet.training.optim import build_optimizer
from tests.conftest import Once, Train
from tests.gpu.conftest import DEVICE, HERE, MARKS
from tests.harness import differing, payload, rows, tiny_config, without_clock

pytestmark = MARKS
EPOCH = ("train.epochs=1", "log.every_steps=1", "optim.lr=0.3")
NEAR = {"fp32": 0.003, "tf32": 0.01, "bf16": 0.02, "fp16": 0.02}
"""Nats by which the losses of the first four steps may differ. Later ones drift apart, in another memory order too."""


def losses(run_dir: Path) -> list[float]:
    return [row["train_loss"] for row in rows(run_dir)]


@pytest.fixture
def of_the_cpu(train_here: Train, once: Once) -> list[float]:
    """The losses in fp32 on a CPU, of one run for all tests."""
    return losses(once("of_the_cpu", lambda run_dir: train_here(run_dir, *EPOCH, "train.device=cpu", "train.amp=off")))


def assert_near(found: list[float], reference: list[float], precision: str) -> None:
    """The first losses, and the mean of the last five of 22, which have fallen from 2.3 to 1.7."""
    assert found[:4] == pytest.approx(reference[:4], abs=NEAR[precision], rel=0)
    assert statistics.fmean(found[-5:]) == pytest.approx(statistics.fmean(reference[-5:]), abs=0.15)


def without_tf32(deterministic: bool) -> None:
    """What the trainer never does by itself."""
    set_deterministic(deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


set_deterministic = wiring.set_deterministic


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("precision", NEAR)
def test_the_losses_are_those_of_fp32_on_a_cpu(
    precision: str, channels_last: bool, train_here: Train, of_the_cpu: list[float], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if precision == "fp32":
        monkeypatch.setattr(wiring, "set_deterministic", without_tf32)
    amp = precision if precision in ("bf16", "fp16") else "off"
    train_here(tmp_path, *EPOCH, HERE, f"train.amp={amp}", f"train.channels_last={str(channels_last).lower()}")
    assert_near(losses(tmp_path), of_the_cpu, precision)


@pytest.mark.gpu(only=True)
def test_auto_is_bf16_where_the_gpu_has_it(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, *EPOCH, HERE, "train.amp=auto")
    [start] = read_rows(tmp_path / "starts.jsonl")
    assert start["amp"] == ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "off")


@pytest.mark.gpu(only=True)
def test_fp32_and_tf32_are_what_they_are_called() -> None:
    images, kernels = (torch.randn(64, 64, 3 + size, 3 + size, dtype=torch.float64, device=DEVICE) for size in (29, 0))
    exact = F.conv2d(images, kernels)
    has_tf32 = torch.cuda.get_device_capability() >= (8, 0)
    for choose, least, most in ((without_tf32, 0.0, 1e-5), (set_deterministic, 1e-4 * has_tf32, 1e-2)):
        choose(True)
        error = (F.conv2d(images.float(), kernels.float()) - exact).norm() / exact.norm()
        assert least <= error.item() < most
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            ["train.compile=true"],
            marks=pytest.mark.skipif(not any(map(which, ("cc", "gcc", "clang"))), reason="needs a C compiler"),
        ),
        ["train.deterministic=false"],
    ],
    ids=str,
)
def test_faster_kernels_give_nearly_the_same_losses(
    options: list[str], train_here: Train, of_the_cpu: list[float], tmp_path: Path
) -> None:
    train_here(tmp_path, *EPOCH, HERE, "train.amp=off", *options)
    torch._dynamo.reset()
    assert_near(losses(tmp_path), of_the_cpu, "tf32")


def test_resident_images_give_the_same_bits(train_here: Train, tmp_path: Path) -> None:
    for resident in ("on", "off"):
        train_here(tmp_path / resident, *EPOCH, HERE, "train.amp=bf16", f"data.resident={resident}")
    on, off = (without_clock(payload(tmp_path / resident)) for resident in ("on", "off"))
    assert differing(on, off) == []


@pytest.mark.gpu(only=True)
def test_pictures_that_are_copied_ahead_arrive_whole(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / f"photos/{'test' if number % 4 == 0 else 'train'}/{'ab'[number % 2]}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((400, 300), 90).convert("RGB").save(path)
    folder, root = str(tmp_path / "photos"), str(tmp_path / "data")
    split = open_data(DataConfig("imagefolder", folder=folder, root=root, image_size=224, store="encoded")).train
    sampler = [torch.arange(30).roll(turn) for turn in range(20)]
    here = load_batches(split, sampler, torch.device(DEVICE))
    for indices, (images, labels, numbers) in zip(sampler, here, strict=True):
        torch.randn(4096, 4096, device=DEVICE).exp()  # so that a copy is begun while something is computed
        assert torch.equal(images.cpu(), split[indices][0])
        assert torch.equal(labels.cpu(), split.labels[indices])
        assert torch.equal(numbers.cpu(), indices)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_updates_are_those_of_the_plain_optimizer_on_a_cpu(name: str) -> None:
    config = tiny_config(f"optim.name={name}").optim
    plain = build_model("tests.networks:tiny_senet", num_classes=10)
    here = copy.deepcopy(plain).to(DEVICE, memory_format=torch.channels_last)
    optimizers = build_optimizer(plain, config), build_optimizer(here, config, fused=True)
    assert optimizers[1].defaults.get("fused", False) is (name != "muon")
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        for one, other in zip(plain.parameters(), here.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = laid_as(other, one.grad)
        for optimizer in optimizers:
            optimizer.step()
    # Newton-Schulz computes in bf16
    close = {"atol": 0.02, "rtol": 0.02} if name == "muon" else {"atol": 1e-5, "rtol": 1e-4}
    for (key, one), other in zip(plain.named_parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(other.cpu(), one, **close, msg=lambda text, key=key: f"{key}: {text}")


def laid_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(parameter).copy_(gradient)
