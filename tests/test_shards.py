"""train.shards in one process: sums in one order, state that follows the shard, what is refused. Several ranks are in
test_shards_ranks.py."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet import launch
from senet.config.options import Config, TrainConfig
from senet.config.shares import most_ranks
from senet.data.augment import Preprocess
from senet.data.samplers import ChunkSampler, ImageData, ResumableSampler
from senet.distributed.ranks import Ranks
from senet.distributed.tree import GradientSum, RankSum, TreeSum
from senet.errors import ConfigError
from senet.models.zoo import build_model
from senet.training.losses import cross_entropy
from senet.training.optim import build_optimizer
from senet.training.schedule import lr_at
from senet.training.seeds import seed_everything
from tests.conftest import Train
from tests.harness import StopAt, checkpoints, differing, edit_manifest, payload, rows, tiny_config


def tree(parts: Sequence[Tensor]) -> Tensor:
    """The sum of a power of two of tensors, as a tree."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return tree(parts[:half]) + tree(parts[half:])


def one_by_one(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16])
def test_shards_are_added_up_as_a_tree(shards: int) -> None:
    generator, sums = torch.Generator().manual_seed(0), TreeSum()
    for _ in range(2):  # it begins anew
        parts = [[torch.randn(size, generator=generator) for size in ((3, 5), (1000,))] for _ in range(shards)]
        expected = [tree(tensors) for tensors in zip(*parts, strict=True)]
        sequential = [one_by_one(tensors) for tensors in zip(*parts, strict=True)]
        for part in parts:
            sums.add([tensor.clone() for tensor in part])
        (found,) = sums.take()
        assert differing(found, expected) == []
        assert (differing(found, sequential) == []) == (shards <= 2)


def test_a_sum_whose_order_matters_is_the_one_by_hand() -> None:
    big, sums = 2.0**26, TreeSum()  # float32 has none between this and big + 8, or big - 4
    for value in (big, 1.0, -big, 1.0):
        sums.add([torch.tensor([value])])
    assert sums.take()[0][0].item() == 0.0  # (big + 1) + (-big + 1)
    assert one_by_one([torch.tensor([value]) for value in (big, 1.0, -big, 1.0)]).item() == 1.0


EXAMPLES = (torch.empty(3), torch.empty(5, 4, 3, 3).to(memory_format=torch.channels_last), torch.empty(7).bfloat16())


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
def test_ranks_add_up_the_upper_part_of_the_same_tree(
    world_size: int, bucket_bytes: int, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank is a thread, and what it sends goes through a queue. 16 shards, several types and memory orders; the
    gradients of ``late`` parameters come in a micro-batch before the last only."""
    generator, shards, this = torch.Generator().manual_seed(0), 16, threading.local()
    queues: dict[tuple[int, int], Queue[Tensor]] = defaultdict(Queue)
    add_up = RankSum._add_up

    def in_thread(self: RankSum, flat: Tensor) -> None:
        this.rank = self._ranks.rank
        add_up(self, flat)

    def exchange(sent: Tensor, received: Tensor, peer: int) -> None:
        queues[this.rank, peer].put(sent.clone())
        received.copy_(queues[peer, this.rank].get(timeout=180))

    def draw(example: Tensor) -> Tensor:
        return torch.empty_like(example).copy_(torch.randn(example.shape, generator=generator))

    monkeypatch.setattr("senet.distributed.tree._BUCKET_BYTES", bucket_bytes)
    monkeypatch.setattr("senet.distributed.tree._exchange", exchange)
    monkeypatch.setattr(RankSum, "_add_up", in_thread)
    updates = [[[draw(example) for example in EXAMPLES] for _ in range(shards)] for _ in range(2)]

    def rank_main(rank: int) -> list[list[Tensor]]:
        parameters = [nn.Parameter(torch.zeros_like(example)) for example in EXAMPLES]
        sums = GradientSum(_named(parameters), Ranks(rank, world_size, rank, world_size, torch.device("cpu")))
        found, share = [], shards // world_size
        for update in updates:
            *others, last = update[rank * share : (rank + 1) * share]
            for part in others:
                _backward(parameters, part)
                sums.add()
            _backward(parameters[:late], last[:late])
            sums.begin_last()
            _backward(parameters[late:], last[late:])
            sums.finish()
            gradients = [p.grad for p in parameters if p.grad is not None]
            assert [gradient.stride() for gradient in gradients] == [example.stride() for example in EXAMPLES]
            found.append([gradient.clone() for gradient in gradients])
            for parameter in parameters:
                parameter.grad = None
        sums._over_ranks._thread.shutdown()  # the hooks of the parameters keep it, and faulthandler shows 100 threads
        return found

    with ThreadPoolExecutor(world_size) as pool:
        by_rank = list(pool.map(rank_main, range(world_size)))
    expected = [[tree(tensors) for tensors in zip(*update, strict=True)] for update in updates]
    for found in by_rank:
        assert differing(found, expected) == []


def _backward(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    if parameters:
        torch.autograd.backward([parameter * 1 for parameter in parameters], [gradient * 1 for gradient in gradients])


def test_parameters_to_which_autograd_gives_one_gradient_get_sums_of_their_own() -> None:
    one, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    sums = GradientSum({"one": one, "other": other}, Ranks(0, 1, 0, 1, torch.device("cpu")))
    for value in (1.0, 10.0, 100.0, 1000.0):
        if value == 1000.0:
            sums.begin_last()
        (value * (one.view(1, 4) + other.view(1, 4))).sum().backward()
        assert one.grad is not None
        assert other.grad is not None
        if value == 1.0:  # what it is about
            assert one.grad.untyped_storage().data_ptr() == other.grad.untyped_storage().data_ptr()
        if value < 1000.0:
            sums.separate()
            sums.add()
    sums.finish()
    for parameter in (one, other):
        assert parameter.grad is not None
        assert parameter.grad.tolist() == [1111.0] * 4


def _named(parameters: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
    return {f"p{number}": parameter for number, parameter in enumerate(parameters)}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_gradient_that_comes_in_parts_is_refused_where_it_may_have_been_sent(world_size: int) -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))]
    sums = GradientSum(_named(parameters), Ranks(0, world_size, 0, world_size, torch.device("cpu")))
    sums.begin_last()
    _backward(parameters[:1], [torch.ones(2, 3)])
    with pytest.raises(ConfigError, match="p0 gets its gradient in parts in one backward pass"):
        _backward(parameters[:1], [torch.ones(2, 3)])


@pytest.mark.parametrize(("length", "batch_size"), [(37, 8), (64, 8), (3, 8), (0, 4)])
def test_evaluation_has_the_same_chunks_for_any_number_of_ranks(length: int, batch_size: int) -> None:
    whole = [chunk.tolist() for chunk in ChunkSampler(length, batch_size=batch_size, rank=0, world_size=1)]
    assert [index for chunk in whole for index in chunk] == list(range(length))
    for world_size in (2, 3, 4, 8):
        dealt = [ChunkSampler(length, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
        assert len({len(sampler) for sampler in dealt}) == 1
        assert [len(list(sampler)) for sampler in dealt] == [len(sampler) for sampler in dealt]
        in_turn = [chunk.tolist() for turn in zip(*dealt, strict=True) for chunk in turn]
        assert [chunk for chunk in in_turn if chunk] == [chunk for chunk in whole if chunk]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_is_the_sum_over_the_samples(smoothing: float) -> None:
    logits, labels = torch.randn(12, 10, requires_grad=True), torch.arange(12) % 10
    loss, keys = partial(cross_entropy, label_smoothing=smoothing, reduction="sum"), torch.zeros(12, dtype=torch.int64)
    found = loss(logits, labels, keys)
    mean = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert torch.equal(loss(logits, labels, keys, reduction="mean"), mean)
    torch.testing.assert_close(found, 12 * mean)
    torch.testing.assert_close(loss(logits[:5], labels[:5], keys[:5]) + loss(logits[5:], labels[5:], keys[5:]), found)
    [gradient], [expected] = torch.autograd.grad(found / 12, logits), torch.autograd.grad(mean, logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("options", "world_size", "message"),
    [
        ("train.shards=6", 1, "train.shards=6 is not a power of two; use e.g. 8"),
        ("train.shards=5", 1, "train.shards=5 is not a power of two; use e.g. 4"),
        ("train.shards=4", 3, "train.shards=4 cannot be dealt to 3 ranks; use 2 ranks"),
        (
            "train.shards=4",
            8,
            "train.shards=4 cannot be dealt to 8 ranks; use 4 ranks, or train.shards=8 for a new run",
        ),
        ("train.shards=1", 2, "use 1 rank, or train.shards=2 for a new run"),
        ("train.shards=8 train.global_batch_size=60", 2, "over train.shards=8 x 1 micro-batch; use a multiple of 8, "),
        (
            "train.shards=8 train.accumulate=3",
            1,
            "over train.shards=8 x 3 micro-batches; use a multiple of 24, e.g. 72",
        ),
        ("train.shards=128", 1, "use a multiple of 128, e.g. 128"),
        ("train.shards=8 train.comm_hook=bf16", 2, "train.comm_hook=bf16 is for gradients between ranks"),
        ("train.shards=8 train.sync_bn=true train.device=cuda", 2, "train.sync_bn=true makes statistics of all ranks"),
        ("train.shards=8 train.deterministic=false", 2, "which train.deterministic=false does not"),
        ("train.shards=-1", 1, "train.shards=-1"),
    ],
)
def test_what_shards_do_not_go_with_is_refused(options: str, world_size: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(*options.split(), world_size=world_size)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_any_power_of_two_of_ranks_up_to_the_shards_may_train(world_size: int) -> None:
    assert tiny_config("train.shards=8", world_size=world_size).train.shards == 8


@pytest.mark.parametrize(("shards", "gpus", "expected"), [(8, 6, 4), (8, 8, 8), (2, 8, 2), (1, 4, 1), (8, 0, 2)])
def test_the_launcher_takes_the_most_ranks_that_divide_the_shards_and_says_so(
    shards: int, gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(launch, "count_gpus", lambda: gpus)
    config = Config(train=TrainConfig(shards=shards, global_batch_size=64))
    assert launch.choose_ranks(config) == most_ranks(config, gpus or 2) == expected
    note = capsys.readouterr().err
    assert (f"{expected} rank(s)" in note and f"train.shards={shards}" in note) == (expected < (gpus or 2))
    monkeypatch.setenv("NPROC", "3")
    with pytest.raises(ConfigError, match=f"train.shards={shards} cannot be dealt to 3 ranks"):
        launch.choose_ranks(config)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def _set_buffers(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        module, _, own = name.rpartition(".")
        setattr(model.get_submodule(module), own, value.clone())


def _by_hand(config: Config, digits: ImageData, steps: int) -> nn.Module:
    """A plain loop over the shards of each batch."""
    train = config.train
    seed_everything(config.seed)
    model = build_model(config.model.name, num_classes=10).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.optim, fused=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    sampler = ResumableSampler(
        digits.train, global_batch_size=train.global_batch_size, rank=0, world_size=1, seed=config.seed
    )
    preprocess = Preprocess(
        config.augment, mean=config.data.mean, std=config.data.std, seed=config.seed, device=torch.device("cpu")
    )
    model.train()
    sampler.start_at(0, 0)
    for step, indices in zip(range(steps), sampler, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config.schedule, lr=group["initial_lr"], steps_per_epoch=len(sampler), epochs=1)
        before, kept, gradients = _buffers(model), {}, []
        for shard, part in enumerate(indices.chunk(train.shards)):
            seed_everything(config.seed, step, shard)
            _set_buffers(model, before)
            images, labels, _ = digits.train[part]
            micro_batches = (each.chunk(train.accumulate) for each in (preprocess.train(images, part, epoch=0), labels))
            for few, targets in zip(*micro_batches, strict=True):
                logits = model(few).float()
                loss = F.cross_entropy(logits, targets, label_smoothing=train.label_smoothing, reduction="sum")
                (loss / train.global_batch_size).backward()
            gradients.append([p.grad for p in trained])
            optimizer.zero_grad()
            kept = kept or _buffers(model)
        _set_buffers(model, kept)
        for parameter, parts in zip(trained, zip(*gradients, strict=True), strict=True):
            parameter.grad = tree(parts)
        if train.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("tiny_senet", "train.shards=1"),
        ("tiny_senet", "train.shards=4 train.accumulate=2 train.clip_norm=1 optim.name=adamw"),
        ("norm_and_dropout", "train.shards=8 optim.name=muon"),
        ("attention", "train.shards=2 train.accumulate=4 optim.name=adamw optim.lr=0.01"),
        ("replaces_its_buffer", "train.shards=4"),
        ("with_frozen_norm", "train.shards=4"),
        ("partly_bfloat16_partly_frozen", "train.shards=4"),
    ],
)
def test_training_by_shards_is_the_plain_loop_over_them(
    network: str, options: str, train_here: Train, digits: ImageData, tmp_path: Path
) -> None:
    """Bit for bit: sums, buffers, random numbers, micro-batches."""
    given = (f"model.name=tests.networks:{network}", "train.amp=off", "train.epochs=1", *options.split())
    train_here(tmp_path, *given, stop=StopAt(5))
    saved = payload(tmp_path)
    model = _by_hand(tiny_config(*given), digits, steps=saved["state"]["step"])
    assert saved["state"]["step"] == 6
    assert differing(saved["model"], dict(model.state_dict())) == []


def test_one_shard_is_close_to_no_shards(train_here: Train, tmp_path: Path) -> None:
    """The gradient is of a sum divided, in place of a mean: other last bits."""
    for shards in (0, 1, 4):
        options = ("model.name=tests.networks:no_norm", "train.amp=off", "train.epochs=1", f"train.shards={shards}")
        train_here(tmp_path / str(shards), *options)
    without, *others = (payload(tmp_path / str(shards))["model"] for shards in (0, 1, 4))
    for model in others:
        for name in model:
            torch.testing.assert_close(model[name], without[name], rtol=1e-3, atol=1e-4)
    losses = [[row["train_loss"] for row in rows(tmp_path / str(shards))] for shards in (0, 1, 4)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(
    ("network", "layer"), [("with_a_spare_layer", "spare.weight"), ("spares_a_layer_in_training", "linear.weight")]
)
def test_a_layer_that_forward_leaves_out_is_named_with_shards_too(
    network: str, layer: str, train_here: Train, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"{layer} gets no gradient"):
        train_here(tmp_path, f"model.name=tests.networks:{network}", "train.shards=4")


def test_the_threads_of_the_first_start_are_kept_and_said(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("model.name=tests.networks:no_norm", "train.shards=4", "train.threads_per_rank=0")
    cores: list[int] = [3, 1, 1]

    def share(_wanted: int, _local_world_size: int) -> int:
        torch.set_num_threads(cores[0])
        return cores.pop(0)

    monkeypatch.setattr("senet.training.run.set_threads", share)
    for _ in range(2):
        capsys.readouterr()
        train_here(tmp_path, *options, stop=StopAt(3))
        said = capsys.readouterr().err
        assert torch.get_num_threads() == 3
        assert "the same bits on any number of ranks that divides it, with 3 thread(s) each" in said
        assert "threads_per_rank was" not in said
    train_here(tmp_path, *options[:2], "train.threads_per_rank=1", stop=StopAt(3))
    said = capsys.readouterr().err
    assert torch.get_num_threads() == 1
    assert "threads_per_rank was 3, now 1: the run goes on, but not bit for bit" in said


def test_another_processor_or_torch_is_warned_about_and_another_number_of_ranks_is_not(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("model.name=tests.networks:no_norm", "train.shards=4")
    train_here(tmp_path, *options, stop=StopAt(3))
    other = {"processor": "abacus", "torch": "0.4.1", "world_size": 4}
    for path in checkpoints(tmp_path):
        edit_manifest(path, lambda manifest: manifest["facts"].update(other))
    capsys.readouterr()
    train_here(tmp_path, *options, stop=StopAt(3))
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING") and ", now " in line]
    assert [line.split()[1] for line in warned] == ["processor", "torch"]
    assert f"torch was 0.4.1, now {torch.__version__}: the run goes on, but not bit for bit" in warned[1]


def test_the_shards_may_not_change_on_resume(train_here: Train, tmp_path: Path) -> None:
    options = ("model.name=tests.networks:no_norm", "train.shards=4")
    train_here(tmp_path, *options, stop=StopAt(3))
    for shards in (0, 8):
        with pytest.raises(ConfigError, match=rf"train\.shards: 4 -> {shards}"):
            train_here(tmp_path, options[0], f"train.shards={shards}")
