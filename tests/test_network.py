"""A checkpoint is enough to use its network."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from senet import REPOSITORY
from senet.config.load import to_flat
from senet.data.samplers import ImageData
from senet.errors import ConfigError
from senet.inference.formats import FORMAT, open_network, to_strings
from senet.inference.network import Trained, check_facts, load_trained, open_checkpoint
from senet.rundir.history import judged
from senet.training.resume import read_named
from tests.conftest import Train
from tests.harness import checkpoints, edit_manifest, rows, status, tiny_config

TINY = "tests.networks:tiny_senet"


def loss(trained: Trained, digits: ImageData) -> float:
    return F.cross_entropy(trained.logits(torch.tensor(digits.test.images)), digits.test.labels).item()


def test_averaged_weights_count_from_five_over_one_less_decay_updates_on_and_before_that_the_raw_ones(
    train_here: Train, digits: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a decay of 0.9 after 50 updates: not at 44, but at 66. The headline, the best and what is opened follow."""
    result = train_here(tmp_path, "train.amp=off", "train.epochs=3", "checkpoint.keep=3", "checkpoint.every_steps=1000")
    epochs = rows(tmp_path, "epoch")
    assert [row["weights"] for row in epochs] == ["raw", "raw", "averaged"]
    counted = [row["ema_top1" if row["weights"] == "averaged" else "test_top1"] for row in epochs]
    assert [row["best_top1"] for row in epochs] == [max(counted[:n]) for n in (1, 2, 3)]
    assert (status(tmp_path)["top1"], status(tmp_path)["weights"]) == (counted[2], "averaged")
    raw, averaged = (f"{result.result[f'{kind}_top1']:.2f} %" for kind in ("test", "ema"))
    headline = f"finished: {averaged} top-1 (averaged weights {averaged}, raw weights {raw}; 360 test images), best "
    assert headline in capsys.readouterr().out
    for path, row in zip(checkpoints(tmp_path), epochs, strict=True):
        trained = load_trained(path, model_name=TINY, device="cpu")
        assert trained.manifest["weights"] == row["weights"]
        assert loss(trained, digits) == pytest.approx(row[f"{judged(row)}_loss"], rel=1e-5)
        assert row["test_loss"] != pytest.approx(row["ema_loss"], rel=1e-3)  # they can be told apart
    best = load_trained(tmp_path, model_name=TINY, device="cpu")
    assert best.manifest["epochs_done"] == epochs[-1]["best_epoch"]
    assert (best.classes, best.image_size) == (digits.classes, 16)


def test_a_checkpoint_that_does_not_say_which_weights_count_is_of_a_version_that_took_the_averaged_ones(
    train_here: Train, digits: ImageData, tmp_path: Path
) -> None:
    train_here(tmp_path, "train.amp=off", "train.epochs=1")
    path, [row] = checkpoints(tmp_path)[-1], rows(tmp_path, "epoch")
    edit_manifest(path, lambda manifest: manifest.pop("weights"))
    averaged = load_trained(path, model_name=TINY, device="cpu")
    assert averaged.manifest["weights"] == "averaged"
    assert loss(averaged, digits) == pytest.approx(row["ema_loss"], rel=1e-5)
    del row["weights"]
    assert judged(row) == "ema"
    assert judged({"test_top1": 1.0}) == "test"


@pytest.mark.parametrize("options", [("model.name=resnet20", "train.ema_decay=0"), ("model.name=se_resnet20",)])
def test_the_documented_python_lines_run_for_any_network(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    train_here(tmp_path / "runs/cifar10", "train.epochs=1", "train.global_batch_size=512", *options)
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs/use-a-trained-network.md").read_text()
    [lines] = re.findall(r"```python\n(from senet.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert found["probabilities"].sum(1).tolist() == pytest.approx([1.0] * 8)
    assert torch.load("weights.pt").keys() == found["trained"].model.state_dict().keys()


def test_a_file_does_not_choose_which_code_is_run(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, "train.epochs=1")
    for path in (tmp_path, checkpoints(tmp_path)[-1]):
        with pytest.raises(ConfigError, match=f"say --model {TINY}"):
            load_trained(path)
    with pytest.raises(ConfigError, match="say --model"):
        load_trained(tmp_path, model_name="tests.networks:no_norm")


@pytest.mark.parametrize("name", ["leaves_a_trace", "leaves_a_trace:"])
def test_a_module_that_a_file_names_is_not_imported(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "leaves_a_trace.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    train_here(tmp_path, "train.epochs=1", "train.global_batch_size=512")
    path = checkpoints(tmp_path)[-1]
    trained = load_trained(path, model_name=TINY, device="cpu")
    facts = {**trained.manifest, "config": trained.manifest["config"] | {"model.name": name}}
    edit_manifest(path, lambda manifest: manifest.update(config=facts["config"]))
    strings = to_strings(facts | {"format": FORMAT, "checkpoint_sha256": "", "with_preprocessing": False})
    weights = {key: value.contiguous() for key, value in trained.model.state_dict().items()}
    save_file(weights, tmp_path / "a.safetensors", strings)
    for file in (path, tmp_path / "a.safetensors"):
        with pytest.raises(ConfigError, match=f"say --model {name} to run it"):
            open_network(file)
        with pytest.raises(ConfigError, match=r"package\.module:function"):  # said, but nothing that can be called
            open_network(file, model_name=name)
    assert not (tmp_path / "trace").exists()


def test_what_holds_no_checkpoint_is_named(train_here: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoints in"):
        load_trained(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing\.pt"):
        load_trained(tmp_path / "nothing.pt")
    train_here(tmp_path / "run", "train.epochs=1")
    path = checkpoints(tmp_path / "run")[-1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="do not match the sha256"):
        load_trained(path, model_name=TINY)


def test_a_checkpoint_that_is_named_without_its_manifest_says_what_to_copy(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path / "run", "train.epochs=1", "train.global_batch_size=512")
    path = checkpoints(tmp_path / "run")[-1]
    with pytest.raises(ConfigError, match=f"is a folder; name one of its checkpoints, e.g. {path}$"):
        read_named(str(tmp_path / "run"))
    alone = path.rename(tmp_path / "alone.pt")
    for use in (open_checkpoint, lambda path: read_named(str(path))):
        with pytest.raises(
            ConfigError, match=rf"alone\.pt lacks its manifest, alone\.json; copy it too.* model\.init_from={alone}$"
        ):
            use(alone)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("classes", None, "classes must be"),
        ("classes", ["a"] * 10, "classes must be"),
        ("classes", [["a"]], "classes must be"),
        ("config", None, "does not say data.image_size, data.mean, "),
        ("model.name", None, "model.name=None"),
        ("model.reduction", 0, "model.reduction=0"),
        ("weights", "best", "weights='best' must be raw or averaged"),
        ("seed", "x", "seed='x'"),
        ("data.store", "foo", "data.store='foo' is no value of this option"),
        ("data.image_size", 50_000, "data.image_size=50000 is out of range"),
        ("data.mean", [0.5, 0.5, float("nan")], "data.mean="),
        ("data.std", [0.5, 0.5, 0.0], "data.std="),
    ],
)
def test_facts_of_which_no_network_can_be_made_are_refused_with_the_file_named(
    key: str, value: object, why: str
) -> None:
    config = to_flat(tiny_config())
    check_facts({"classes": ["a", "b"], "config": config}, Path("file.pt"))
    facts: dict[str, object] = {"classes": ["a", "b"], "config": config | {key: value}}
    with pytest.raises(ConfigError, match=rf"^file\.pt.* {re.escape(why)}"):
        check_facts(facts | ({key: value} if "." not in key else {}), Path("file.pt"))


def test_a_checkpoint_that_lacks_something_is_named(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, "train.epochs=1", "train.global_batch_size=512")
    path = checkpoints(tmp_path)[-1]
    for content in ({"x": 1}, {"ema": 1}, [1], {"ema": None, "model": [1]}):
        torch.save(content, path)
        _describe(path)
        with pytest.raises(ConfigError, match=f"{path.name} (holds no weights|does not fit)"):
            load_trained(path, model_name=TINY)
    edit_manifest(path, lambda manifest: manifest.pop("config"))
    with pytest.raises(ConfigError, match=f"{path.name} does not say"):
        open_checkpoint(tmp_path)
    edit_manifest(path, lambda manifest: manifest.pop("file"))
    with pytest.raises(ConfigError, match="does not say 'file'"):
        open_checkpoint(tmp_path)


def _describe(path: Path) -> None:
    facts = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    edit_manifest(path, lambda manifest: manifest.update(facts))
