"""Options: merging, refusing, the manual."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from senet.config import (
    REPOSITORY,
    Config,
    ConfigError,
    DataConfig,
    changed_options,
    help_text,
    load_config,
    main,
    restore_data,
    to_flat,
    to_yaml,
)


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yml"
    first.write_text("seed: 1\noptim: {lr: 0.5, momentum: 0.8}\n")
    second.write_text("optim:\n  lr: 0.25\n")
    config = load_config([str(first), str(second), "seed=3", "data.mean=[0, 0.5, 1]"])
    assert (config.seed, config.optim.lr, config.optim.momentum) == (3, 0.25, 0.8)
    assert config.data.mean == (0.0, 0.5, 1.0)
    assert config.run_dir == "runs/first"


def test_without_arguments_the_default_is_cifar10() -> None:
    config = load_config([])
    assert (config.run_dir, config.data.source, config.model.name) == ("runs/cifar10", "cifar10", "senet18")


def test_the_default_file_spells_out_the_defaults() -> None:
    assert to_flat(load_config(["configs/cifar10.yaml"])) == to_flat(Config()) | {"run_dir": "runs/cifar10"}


def test_off_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {amp: off}")
    assert load_config(["data.resident=on"]).data.resident == "on"
    for argument in ("train.amp=off", str(tmp_path / "a.yaml"), "configs/baseline.yaml"):
        assert load_config([argument]).train.amp == "off"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_file_loads(path: Path) -> None:
    assert load_config([str(path)]).run_dir == f"runs/{path.stem}"


def test_the_resolved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(["optim.lr=0.125", "schedule.name=multistep", "schedule.milestones=[3,7]", "run_dir=x"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config([str(file)]) == config


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optim.lrr=1", "did you mean 'optim.lr'"),
        ("lr=1", "did you mean 'optim.lr'"),
        ("train=3", "train is a group"),
        ("train.epochs=many", "train.epochs"),
        ("train.epochs=1.5", "train.epochs"),
        ("train.epochs=0", "train.epochs=0 is out of range: it must be >= 1"),
        ("train.epochs=", "train.epochs"),
        ("optim.lr=nan", "optim.lr=nan is out of range"),
        ("optim.lr=inf", "optim.lr=inf is out of range"),
        ("data.mean=[1,2]", "data.mean=[1,2]"),
        ("data.std=[0,1,1]", "data.std"),
        ("data.source=imagenet", "data.source"),
        ("data.source=imagefolder", "data.folder"),
        ("data.image_size=100000", "data.image_size=100000"),
        ("train.amp=fp8", "train.amp"),
        ("model.name=resnet", "package.module:function"),
        ("model.name=se_resent18", "did you mean 'se_resnet18'"),
        ("model.name=xyz", "--help lists them"),
        ("model.reduction=0", "model.reduction=0 is out of range: it must be >= 1"),
        ("model.name=inception_v3", "set data.image_size=75"),
        ("model.small_stem=true", "model.small_stem=false"),
        ("schedule.milestones=[3,2]", "must rise"),
        ("schedule.name=multistep", "schedule.milestones"),
        ("schedule.warmup_epochs=30", "must be below train.epochs=30"),
        ("augment.small_epochs=1", "augment.small_size=32 must be below data.image_size=32"),
        ("optim.momentum=0", "optim.nesterov"),
        ("seed=${nowhere}", "nowhere"),
        ("=3", "unknown option"),
        ("missing.yaml", "no such file"),
        ("configs/cifar.yaml", "did you mean"),
        ("epochs", "neither key=value nor a YAML file"),
        ("train.global_batch_size=511", "use a multiple of 2, e.g. 512"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    argument: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([argument]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("train_ddp: ")
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim: {lr: [", "not a readable YAML file"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("optim: {lr: !!python/object/apply:os.getcwd []}", "not a readable YAML file"),
        ("optimizer: {lr: 1}", "unknown option 'optimizer'"),
        ("optim: {lr: 1, lr: 2}", "not a readable YAML file"),
        ("3: 4", "unknown option '3'"),
        ("\x00", "not a readable YAML file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml") as caught:
        load_config([str(file)])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("model.whiten=true", "model.init_from=a.pt"), "would replace the first layer of model.init_from=a.pt"),
        (("optim.bias_lr=1", "optim.decay_norms_and_biases=true"), "norms and biases that do not decay"),
        (("augment.small_size=24", "augment.small_epochs=30"), "must be below train.epochs=30"),
        (("augment.small_size=24", "augment.small_epochs=1", "train.compile=true"), "would not resume bit for bit"),
        (
            ("augment.small_size=74", "augment.small_epochs=1", "data.image_size=75", "model.name=inception_v3"),
            "inception_v3 needs 75 pixels",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(options)


@pytest.mark.parametrize(("batch", "ranks", "parts", "nearest"), [(512, 3, 1, 513), (10, 4, 2, 8), (1, 4, 1, 4)])
def test_a_batch_that_cannot_be_split_names_the_nearest(batch: int, ranks: int, parts: int, nearest: int) -> None:
    options = [f"train.global_batch_size={batch}", f"train.accumulate={parts}"]
    with pytest.raises(ConfigError, match=rf"e\.g\. {nearest}$"):
        load_config(options, ranks)
    load_config([f"train.global_batch_size={nearest}", f"train.accumulate={parts}"], ranks)


def test_only_options_that_change_numbers_count_as_changed() -> None:
    saved = to_flat(load_config([]))
    now = load_config(["optim.lr=0.3", "checkpoint.keep=9", "log.every_steps=1", "data.root=x", "seed=4"])
    assert changed_options(saved, now) == [("seed", 0, 4), ("optim.lr", 0.1, 0.3)]
    del saved["train.clip_norm"]  # an option younger than the checkpoint
    assert changed_options(saved, load_config([])) == []
    assert changed_options(saved, load_config(["train.clip_norm=1"])) == [("train.clip_norm", 0.0, 1.0)]


def test_the_manual_describes_every_option() -> None:
    lines = help_text().splitlines()
    for key in to_flat(Config()):
        [at] = [i for i, line in enumerate(lines) if line.strip().startswith((f"{key} =", f"{key}* ="))]
        assert len(lines[at + 1].strip()) > 5, f"{key} has no text"


def test_help_and_check_import_neither_torch_nor_numpy() -> None:
    code = "import sys; from senet.config import main; main(sys.argv[1:]); print({'torch', 'numpy'} & set(sys.modules))"
    for argument in ("--help", "configs/quickstart.yaml"):
        done = subprocess.run([sys.executable, "-c", code, argument], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "set()", done.stderr
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "train_ddp.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "optim.lr = 0.1" in done.stdout
    assert " torch\n" not in done.stderr


def test_data_options_of_a_file_are_taken_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    for folder in ("/data/set #2", "${oc.env:SECRET}", "${", "'x'", "null", "007"):
        saved = {"data.source": "imagefolder", "data.folder": folder, "data.std": [0.5, 0.5, 0.25], "data.younger": 1}
        data = restore_data(saved, ["data.root=/else where", "data.decode_threads=3"])
        assert data == DataConfig("imagefolder", "/else where", folder, std=(0.5, 0.5, 0.25), decode_threads=3)
        assert restore_data(saved, ["data.folder=a"]).folder == "a"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "nonsense"),
        ("root", ["a"]),
        ("root", "a\nb"),
        ("image_size", 50_000),
        ("image_size", "32"),
        ("image_size", True),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, "0.5"]),
        ("mean", [0.5, 0.5, math.nan]),
        ("std", [0.5, 0.5, 0]),
    ],
)
def test_a_data_option_of_a_file_that_training_would_refuse_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}="):
        restore_data({f"data.{key}": value})
    with pytest.raises(ConfigError, match="needs data"):
        restore_data({}, ["data.source=imagefolder"])
