"""The parts of ``launch.sh drill`` that need no processes: options, what is compared, how a cause is found."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from senet import launch
from senet.config.load import load_config
from senet.data.samplers import ImageData
from senet.drill import __main__ as command
from senet.drill import digests, probe
from senet.drill.compare import Difference, Left, Moment, Run, first_difference, leaves, read_run, what_differs
from senet.drill.diagnose import depends_on_ranks, first_layer, lost_on_resume, not_deterministic
from senet.drill.digests import described, sum_of_bits, sums, trained, unsaved
from senet.drill.layers import LayerTrace
from senet.drill.plan import Plan, Size, choose_kills, first_plan, save_every, take_options
from senet.drill.starts import carry_out
from senet.drill.trials import Trials, drill
from senet.errors import ConfigError, RunError
from senet.training.flops import Utilisation
from senet.training.learner import Learner
from senet.training.optim import build_average
from tests.harness import tiny, tiny_config

# options and plans


def test_the_options_of_the_command_are_taken_out_of_those_of_the_training() -> None:
    assert take_options(["a.yaml", "optim.lr=1"]) == (Size(60, ()), ["a.yaml", "optim.lr=1"])
    assert take_options(["drill.steps=8", "a.yaml", " drill.ranks = 4,1 "]) == (Size(8, (4, 1)), ["a.yaml"])
    assert take_options(["drill.ranks=[2]"])[0].ranks == (2,)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("drill.step=9", "unknown option 'drill.step'; there is drill.steps and drill.ranks"),
        ("drill.steps=7", "drill.steps=7 is not one number of 8 or more"),
        ("drill.steps=8,9", "drill.steps=8,9 is not one number"),
        ("drill.steps=", "drill.steps= is not one number"),
        ("drill.steps", "drill.steps has no value; give it one: drill.steps=60 or drill.ranks=1,2"),
        ("drill.ranks=0", "drill.ranks=0 is not numbers of ranks, each once, such as 1,2"),
        ("drill.ranks=2,2", "drill.ranks=2,2 is not"),
        ("drill.ranks=1,x", "drill.ranks=1,x is not"),
    ],
)
def test_a_value_that_cannot_be_is_refused(word: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        take_options([word])
    assert str(error.value).startswith(expected)


@pytest.mark.parametrize(("epochs", "expected"), [(1, 60), (2, 30), (3, 24), (200, 24)])
def test_two_epochs_end_in_a_drill_and_it_stops_in_the_third_if_there_are_so_many(epochs: int, expected: int) -> None:
    plan = first_plan(tiny_config(f"train.epochs={epochs}"), Size(60, (1, 2)), Path("folder"))
    assert plan == Plan("folder", 60, expected, tested=int(1.5 * 256 * 2))


@pytest.mark.parametrize(
    ("gpus", "nproc", "shards", "expected"),
    [(0, "", 0, (2,)), (0, "", 4, (2, 1)), (0, "1", 4, (1, 2)), (8, "", 4, (4, 2)), (8, "1", 4, (1, 2))],
)
def test_with_shards_another_number_of_ranks_is_drilled_too(
    gpus: int, nproc: str, shards: int, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPROC", nproc)
    monkeypatch.setattr(launch, "count_gpus", lambda: gpus)
    config = load_config(tiny(f"train.shards={shards}", "train.device=auto", "train.global_batch_size=16"))
    assert command._usual_ranks(config, gpus) == expected


def test_on_one_gpu_one_rank_is_drilled_and_more_are_refused_before_the_first_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NPROC", raising=False)
    for module in (launch, command):
        monkeypatch.setattr(module, "count_gpus", lambda: 1)
    words = tiny("train.shards=4", "train.device=auto")
    assert command._usual_ranks(load_config(words), 1) == (1,)
    assert "on 1 GPU it drills 1 rank only" in capsys.readouterr().err
    monkeypatch.setattr(command, "_scratch_folder", lambda: pytest.fail("it begins"))
    with pytest.raises(ConfigError, match=r"^2 rank\(s\) \(drill.ranks, or NPROC\) need as many GPUs, and there are 1"):
        command.main([*words, "drill.ranks=1,2"])


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = Plan("folder", 60, 24, 100, (9, 40), layers=True)
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("steps", [8, 9, 24, 60, 200])
@pytest.mark.parametrize("of_five", [1, 2, 5])
def test_each_kill_loses_updates_and_has_a_checkpoint_of_its_own_in_the_middle_of_an_epoch(
    steps: int, of_five: int
) -> None:
    epoch, every = of_five * steps // 5, save_every(steps)
    found = {choose_kills(steps, epoch, seed) for seed in range(50)}
    assert found == {choose_kills(steps, epoch, seed) for seed in range(50)}
    assert len(found) > 1 or steps < 10
    for kills in found:
        first, second = ((kill - 1) // every * every for kill in kills)
        assert every <= first < second < kills[1] < steps
        assert kills[0] <= steps // 2
        if epoch > 2 * every:
            assert not [
                each for kill in kills for each in range((kill - 1) // every * every, kill) if each % epoch == 0
            ]


def test_epochs_of_one_update_can_be_drilled_too() -> None:
    first, second = choose_kills(8, 1, seed=0)
    assert 2 < first < second < 8


def test_images_are_taken_from_all_over_a_split(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "open_data", lambda *_, **__: digits)
    config, plan = tiny_config("train.global_batch_size=16", "train.epochs=9"), Plan("", 10, 4, tested=30)
    some = probe.open_some(config, plan, config.data, local_rank=0)
    assert (len(some.train), len(some.test), some.fingerprint) == (64, 30, digits.fingerprint)
    places = torch.from_numpy(np.linspace(0, len(digits.train) - 1, 64).astype(np.int64))
    for found, expected in zip(some.train[torch.arange(64)][:2], digits.train[places][:2], strict=True):
        assert torch.equal(found, expected)
    again = probe.open_some(config, replace(plan, epoch_steps=2), config.data, local_rank=0)
    assert len(again.train) == 32
    with pytest.raises(ConfigError, match=r"^drill.steps=900 is more than the 801 updates of train.epochs=9 with 1437"):
        probe.open_some(config, replace(plan, steps=900), config.data, local_rank=0)


# what stands for a training


def test_content_that_differs_is_described_otherwise_and_equal_content_alike() -> None:
    def draws(seed: int, count: int) -> list[Any]:
        mine, arrays, tensors = random.Random(seed), np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        for _ in range(count):
            mine.random(), arrays.random(), torch.rand(1, generator=tensors)
        return [mine, arrays, tensors, np.random.RandomState(seed + count)]

    def content(seed: int, count: int) -> list[Any]:
        order = torch.Generator().manual_seed(seed + count)
        plain = [count, float(count), f"{seed} {count}", bytes([count]), seed == count, {"a": [count, {seed}]}]
        arrays = [torch.randperm(16, generator=order), torch.tensor([count, 0.5]).bfloat16(), np.array([seed, count])]
        large = ["x" * 100 + str(count), list(range(count, 200)), nn.Linear(1, 1, bias=False).requires_grad_(False)]
        nn.init.constant_(large[-1].weight, count)
        return [*plain, *arrays, *large, *draws(seed, count), [draws(seed, count)[0]]]

    alike = [described(each) for each in content(1, 2)]
    assert alike == [described(each) for each in content(1, 2)]
    others = [described(each) for each in content(1, 3)]
    assert [number for number, (a, b) in enumerate(zip(alike, others, strict=True)) if a == b] == [4]  # False and False
    assert max(map(len, alike)) < 80


def test_to_look_at_a_thing_neither_changes_it_nor_walks_through_all_of_it() -> None:
    class Endless(dict[str, int]):
        def __len__(self) -> int:
            return 10**9

        def items(self) -> Any:
            pytest.fail("it is walked through")

    before = torch.get_rng_state()
    assert described(torch.utils.data.DataLoader([1, 2], shuffle=True)) == "a DataLoader"  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    assert described(Endless()) == "a Endless"


@pytest.mark.parametrize("shape", [(6, 4), (0, 3)])
def test_an_array_is_described_by_its_content_whatever_its_layout(shape: tuple[int, int]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    assert described(array) == described(np.asfortranarray(array)) == described(torch.from_numpy(array))
    assert (described(array) == described(array + 1)) == (array.size == 0)
    dates = array.astype("datetime64[s]")
    assert described(dates) == described(dates.copy())


def test_what_cannot_be_looked_into_is_described_by_its_type() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert described(len) == "a builtin_function_or_method"
    assert described(nn.functional.relu) == "a function"
    assert described(list(range(10_000))) == "a list"
    assert described(deque([1, 2])) == "deque(=1, =2)"
    assert "a list" in described(endless)


@pytest.mark.parametrize(
    "kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.complex64]
)
def test_one_bit_changes_a_sum(kind: torch.dtype) -> None:
    tensor = torch.arange(24).to(kind).view(2, 3, 4).permute(2, 0, 1)
    other = tensor.clone()
    other[3, 1, 2] += 1
    found = sums({"a": tensor, "b": other, "c": tensor.contiguous(), "d": torch.ones(3, dtype=torch.bool)})
    assert found["a"] == found["c"] != found["b"]
    assert found["d"] == sums({"d": torch.ones(3, dtype=torch.uint8)})["d"]


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [6, 2 * digests._AT_ONCE])
def test_changes_that_cancel_in_a_plain_sum_change_a_sum(kind: torch.dtype, size: int) -> None:
    plain = torch.rand(size, generator=torch.Generator().manual_seed(1)).to(kind) + 1
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[plain.element_size()]

    def changed(amounts: Mapping[int, int]) -> Tensor:
        other = plain.clone()
        for place, amount in amounts.items():
            other.view(integers)[place] += amount
        return other

    signs = plain.clone()
    signs[[1, -2]] *= -1
    others = [changed({1: 1, -1: -1}), changed({1: 1, 2: -2, 3: 1}), signs, plain.flip(0), plain.roll(size // 2)]
    found = [int(sum_of_bits(each)) for each in (plain, *others)]
    assert len(set(found)) == len(found)


def test_a_sum_is_the_same_in_every_process_and_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    digests._odd_numbers.cache_clear()
    found = sum_of_bits(torch.arange(5, dtype=torch.int32))
    assert torch.equal(torch.get_rng_state(), before)
    digests._odd_numbers.cache_clear()
    assert found == sum_of_bits(torch.arange(5, dtype=torch.int32))


def _learner(network: nn.Module) -> Learner:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    average = build_average(network, 0.9)
    return Learner(
        network,
        network,
        None,
        average,
        optimizer,
        torch.amp.GradScaler("cpu"),
        torch.no_grad,
        [],
        Utilisation(0.0, 0.0),
    )  # type: ignore[arg-type]


def test_all_that_is_trained_has_a_name_and_the_rest_that_can_be_looked_at_too() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].register_buffer("table", torch.zeros(1), persistent=False)
    network[1].calls = 3
    learner = _learner(network)
    learner.optimizer.k = 0.5  # type: ignore[attr-defined]
    learner.optimizer.param_groups[0]["d"] = 7
    network(torch.ones(2, 2)).sum().backward()
    learner.optimizer.step()
    assert trained(learner).keys() == {
        *(f"parameter {n}" for n, _ in network.named_parameters()),
        *(f"buffer 1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")),
        *(f"momentum_buffer of {n} in the optimizer" for n, _ in network.named_parameters()),
        *(f"average of {n}" for n in network.state_dict()),
    }
    others = unsaved(learner, object.__new__(type("Images", (), {})))
    assert others["0.table (a buffer with persistent=False)"] == "0.0"
    assert (others["1.calls"], others["the optimizer.k"], others["the optimizer.param_groups[0].d"]) == (
        "3",
        "0.5",
        "7",
    )
    assert not [name for name in others if "lr" in name.split(".")[-1] or "need_device" in name]


# what is compared

TENSORS = {"parameter a": 1, "parameter b": 2}


def moment(start: int, step: int, *, restored: bool = False, others: Mapping[str, str] | None = None, **sums_: int):  # type: ignore[no-untyped-def]
    return Moment(start, step, restored, TENSORS | {f"parameter {k}": v for k, v in sums_.items()}, others or {})


def run(folder: Path, *moments: Moment, ranks: Sequence[int] = (2, 2, 2)) -> Run:
    return Run(folder, moments, tuple(ranks), epoch_steps=4, threads=1, amp="bf16")


def unbroken(folder: Path, **last: int) -> Run:
    first = [moment(1, 0, restored=True), moment(1, 1, a=5), moment(1, 2, a=6, others={"x.calls": "2"})]
    return run(folder, *first, moment(1, 3, a=7, **last))


def test_traces_are_read_with_what_did_not_change(tmp_path: Path) -> None:
    rows = [
        {"step": 2, "restored": True, "tensors": {"a": 1}, "others": {"x": "1", "y": "2"}},
        {"step": 3, "restored": False, "tensors": {"a": 2}, "others": {"x": "3"}},
    ]
    rows[0] |= {"epoch_steps": 9, "ranks": 4, "threads": 1, "amp": "bf16"}
    for start in (1, 2, 10):
        lines = [json.dumps(row | {"tensors": {"a": start}}) + "\n" for row in rows]
        (tmp_path / f"start-{start}.jsonl").write_text("".join(lines) + '{"step": 4, ')
    found = read_run(tmp_path)
    assert (found.ranks, found.epoch_steps, found.resumed_from) == ((4, 4, 4), 9, [2, 2])
    assert (found.threads, found.amp) == (1, "bf16")
    assert [(m.start, m.step, m.restored) for m in found.moments[-2:]] == [(3, 2, True), (3, 3, False)]
    assert found.moments[-1].others == {"x": "3", "y": "2"}
    assert [found.moments[number].tensors["a"] for number in (0, 2, 4)] == [1, 2, 10]
    assert read_run(tmp_path / "none").moments == ()


def test_the_first_update_that_differs_is_found_with_its_tensor_and_its_start(tmp_path: Path) -> None:
    one = unbroken(tmp_path)
    again = [moment(2, 1, restored=True, a=99), moment(2, 2, a=6), moment(2, 3, a=7, b=4)]
    other = run(tmp_path, moment(1, 0, restored=True), moment(1, 1, a=5), *again)
    assert first_difference(one, other) == Difference("parameter b", step=3, start=2, resumed_from=1)
    assert first_difference(one, one) is None


def test_a_checkpoint_and_rows_are_compared_bit_by_bit_without_clocks() -> None:
    def left(weight: Tensor, loss: float) -> Left:
        payload = {"model": {"w": weight, "n": torch.tensor([float("nan")])}, "state": {"step": 3, "sums": [1, 2]}}
        return Left(dict(leaves(payload)), ({"step": 3, "train_loss": loss}, {"step": 4, "test_loss": float("nan")}))

    one = left(torch.tensor([0.0, 1.0]), 0.5)
    assert one.tensors == 2
    assert list(one.payload) == ["model.w", "model.n", "state.step", "state.sums.0", "state.sums.1"]
    assert what_differs(one, left(torch.tensor([0.0, 1.0]), 0.5)) == []
    assert what_differs(one, left(torch.tensor([-0.0, 1.0]), 0.5)) == ["model.w"]
    assert what_differs(one, left(torch.tensor([0.0]), 0.5)) == ["model.w"]
    assert what_differs(one, left(torch.tensor([0.0, 1.0]), 0.6)) == [
        "train_loss in the row of step 3 of metrics.jsonl"
    ]
    assert what_differs(one, replace(one, rows=one.rows[:1])) == ["metrics.jsonl: 2 rows and 1"]
    missing = {key: value for key, value in one.payload.items() if key != "model.w"}
    assert what_differs(one, replace(one, payload=missing)) == ["model.w"]


# the cause


def layers(folder: Path, *passes: Sequence[tuple[str, str, int]]) -> Path:
    folder.mkdir()
    rows = [
        {"step": 1, "pass": number, "events": [[name, "Kind", side, value] for name, side, value in events]}
        for number, events in enumerate(passes)
    ]
    for rank in (0, 1):
        mine = rows[rank::2]
        (folder / f"layers-1-{rank}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
    return folder


SAME = [("", "in", 1), ("body", "in", 1), ("body.a", "in", 1), ("body.a", "out", 2), ("body", "out", 2), ("", "out", 2)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (0, "the images that the network is given differ first: the source of the images"),
        (1, "the input of body (Kind) differs first: what the network computes before it, in update 1"),
        (2, "the input of body.a (Kind) differs first: what body computes before it"),
        (3, "the output of body.a (Kind) differs first, from the same input, in update 1"),
        (5, "the output of the network (Kind) differs first, from the same input"),
    ],
)
def test_the_first_layer_that_differs_is_named(changed: int, expected: str, tmp_path: Path) -> None:
    events = [event if number < changed else (*event[:2], 9) for number, event in enumerate(SAME)]
    last = [("", "in", 8)]
    one, other = (layers(tmp_path / name, SAME, each, last) for name, each in (("one", SAME), ("other", events)))
    (other / "layers-1-0.jsonl").write_text((other / "layers-1-0.jsonl").read_text().replace(", 8]", ", 9]"))
    assert (first_layer(unbroken(one), unbroken(other)) or "").startswith(expected)
    assert first_layer(unbroken(one), unbroken(one)) is None


def test_another_way_through_the_network_is_named(tmp_path: Path) -> None:
    one, other = layers(tmp_path / "one", SAME), layers(tmp_path / "other", [*SAME[:2], ("body.b", "in", 1)])
    found = first_layer(unbroken(one), unbroken(other))
    assert found == "other layers run: body.a (Kind) in one run, body.b (Kind) in the other, in update 1"


def test_two_undisturbed_runs_that_differ_are_not_deterministic(tmp_path: Path) -> None:
    same = unbroken(layers(tmp_path / "same", SAME))
    assert not_deterministic(same, same, same) is None
    other = unbroken(layers(tmp_path / "other", [("", "in", 5), *SAME[1:]]), b=3)
    for three in ((same, same, other), (same, other, same)):
        cause = not_deterministic(*three)
        assert cause is not None
        assert "not deterministic" in cause.text
        assert cause.details[0].startswith("the images")
    only_weights = unbroken(same.folder, b=3)
    cause = not_deterministic(same, only_weights, same)
    assert cause is not None
    assert cause.details[0].startswith(
        "parameter b differs first, after update 3; what the layers computed was the same"
    )
    compiled = [unbroken(tmp_path, b=b) for b in (2, 3, 2)]
    cause = not_deterministic(*compiled)
    assert cause is not None
    assert "train.compile=false may name one" in cause.details[0]


def test_what_a_resumed_start_did_not_have_is_named(tmp_path: Path) -> None:
    restored = moment(2, 2, restored=True, a=6, b=9, others={"x.calls": "0", "y": "1"})
    resumed = run(tmp_path, moment(1, 0, restored=True), restored, moment(2, 3, a=8), ranks=(2, 1))
    cause = lost_on_resume(unbroken(tmp_path), resumed, Difference("parameter a", 3, 2, 2))
    assert cause.text.startswith("state that is not saved")
    assert cause.text.endswith("(from update 2, on 1 rank(s) instead of 2)")
    assert cause.details == (
        "parameter b: not as it was in the unbroken run",
        "x.calls: 2 in the unbroken run, 0 after the resume",
        "y: missing in the unbroken run, 1 after the resume",
    )
    restored = moment(2, 2, restored=True, a=6, others={"x.calls": "2"})
    resumed = run(tmp_path, moment(1, 0, restored=True), restored, moment(2, 3, a=8))
    cause = lost_on_resume(unbroken(tmp_path), resumed, Difference("parameter a", 3, 2, 2))
    assert cause.text.endswith("(from update 2)")
    assert cause.details[0].startswith("unknown which")


def test_a_layer_that_looks_at_the_rank_is_named_from_two_traces(tmp_path: Path) -> None:
    one, other = layers(tmp_path / "one", SAME), layers(tmp_path / "other", [*SAME[:3], ("body.a", "out", 7)])
    cause = depends_on_ranks(unbroken(one), replace(unbroken(other), ranks=(1,)))
    assert cause.text.startswith("it depends on the rank: 2 and 1 rank(s) differ")
    assert cause.details[0].startswith("the output of body.a (Kind) differs first")


def test_layers_are_traced_inside_out_and_numbered_over_the_ranks(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    trace = LayerTrace(network, tmp_path / "layers-1-3.jsonl", rank=3)
    for _ in range(2):
        network(torch.ones(1, 2))
    network.eval()(torch.ones(1, 2))  # is no part of training
    trace.end_of_update(5)
    trace.end_of_update(6)
    found = [json.loads(line) for line in (tmp_path / "layers-1-3.jsonl").read_text().splitlines()]
    assert [(row["step"], row["pass"]) for row in found] == [(5, 6), (5, 7)]
    order = [("", "in"), ("0", "in"), ("0", "out"), ("1", "in"), ("1", "out"), ("", "out")]
    assert [(name, side) for name, _, side, _ in found[0]["events"]] == order
    assert found[0]["events"] == found[1]["events"]


def test_an_exchange_of_two_tensors_that_go_into_a_layer_is_seen(tmp_path: Path) -> None:
    network = nn.Bilinear(2, 2, 2)
    trace = LayerTrace(network, tmp_path / "layers-1-0.jsonl", rank=0)
    one, other = torch.ones(1, 2), torch.zeros(1, 2)
    network(one, other)
    network(other, one)
    trace.end_of_update(1)
    first, second = (json.loads(line)["events"][0] for line in (tmp_path / "layers-1-0.jsonl").read_text().splitlines())
    assert first[:3] == second[:3] == ["", "Bilinear", "in"]
    assert first[3] != second[3]


# starts


def test_a_start_that_ends_otherwise_than_planned_is_told_with_its_reason(tmp_path: Path) -> None:
    Plan(str(tmp_path), 3, 4, 9, kills=(2,)).write(tmp_path / "plan.json")

    def ends(code: int, last: int, said: str):  # type: ignore[no-untyped-def]
        def start(_argv: Sequence[str], _plan: Path, ranks: int, log: Path) -> int:
            log.write_text(said)
            row = {"step": last, "restored": True, "tensors": {}, "others": {}, "epoch_steps": 4, "ranks": ranks}
            number = len(list(tmp_path.glob("start-*.jsonl"))) + 1
            (tmp_path / f"start-{number}.jsonl").write_text(json.dumps(row | {"threads": 1, "amp": "off"}))
            return code

        for old in tmp_path.glob("start-*"):
            old.unlink()
        return start

    with pytest.raises(ConfigError, match=r"^no such option$"):
        carry_out([], tmp_path / "plan.json", [1, 1], ends(2, 2, "INFO: x\ntrain_ddp: no such option\n"))
    with pytest.raises(RunError, match=r"^a start failed: ValueError: b; its output is in .*start-1.log$"):
        carry_out([], tmp_path / "plan.json", [1, 1], ends(1, 1, "Traceback:\n  a\nValueError: b\n\n"))
    with pytest.raises(RunError, match=r"^a start failed: rank 0 ended; .*start-2.log$"):
        carry_out([], tmp_path / "plan.json", [1, 1], ends(1, 2, "launch.sh: failed: rank 0 ended\n"))
    with pytest.raises(RunError, match="it said nothing"):
        carry_out([], tmp_path / "plan.json", [1], ends(0, 1, ""))
    Plan(str(tmp_path), 3, 4, 9).write(tmp_path / "plan.json")
    carry_out([], tmp_path / "plan.json", [1], ends(85, 3, ""))


def test_all_runs_are_given_the_precision_that_the_first_one_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Sequence[str]] = []

    def carry(argv: Sequence[str], plan: Path, _ranks: Sequence[int]) -> None:
        given.append(argv)
        if len(given) == 2:
            raise RunError("enough")
        row = {"step": 0, "restored": True, "tensors": {}, "others": {}, "epoch_steps": 4, "ranks": 1}
        (plan.parent / "start-1.jsonl").write_text(json.dumps(row | {"threads": 1, "amp": "off"}))

    monkeypatch.setattr("senet.drill.trials.read_left", lambda _: None)
    with pytest.raises(RunError, match=r"^enough$"):
        drill(Trials(["train.amp=auto"], tiny_config(), Size(8, (1,)), tmp_path, carry, print), (1,))
    assert [[word for word in argv if "amp" in word] for argv in given] == [
        ["train.amp=auto"], ["train.amp=auto", "train.amp=off"],
    ]  # fmt: skip


def test_only_the_first_start_of_all_is_bad_input_where_it_is_refused(tmp_path: Path) -> None:
    Plan(str(tmp_path), 3, 4, 9, kills=(2,)).write(tmp_path / "plan.json")

    def start(_argv: Sequence[str], _plan: Path, ranks: int, log: Path) -> int:
        log.write_text("train_ddp: other images\n")
        if log.name == "start-2.log":
            return 2
        row = {"step": 2, "restored": True, "tensors": {}, "others": {}, "epoch_steps": 4, "ranks": ranks}
        row |= {"threads": 1, "amp": "off"}
        (tmp_path / "start-1.jsonl").write_text(json.dumps(row))
        return 1

    with pytest.raises(RunError, match=r"^a start failed: other images; its output is in .*start-2.log$"):
        carry_out([], tmp_path / "plan.json", [1, 1], start)

    def refuses(*_: object) -> None:
        raise ConfigError("other images")

    trials = Trials([], tiny_config(), Size(8, (1,)), tmp_path / "runs", refuses, print)
    trials.scratch.mkdir()
    with pytest.raises(ConfigError, match=r"^other images$"):
        trials.run("unbroken", [1])
    with pytest.raises(RunError, match=r"^killed: a start was refused, though an earlier one was not: other images"):
        trials.run("killed", [1])
