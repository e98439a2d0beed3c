"""Options: merging, refusing, the manual."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from senet import REPOSITORY
from senet.config.__main__ import main
from senet.config.load import changed_options, load_config, restore_data, to_flat, to_yaml
from senet.config.manual import help_text
from senet.config.options import Config, DataConfig, SlurmConfig, groups, options, those
from senet.errors import ConfigError

PHOTOS = ("data.source=imagefolder", "data.folder=photos", "data.image_size=224")


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


TEXTS = ["10:30", "007", "0123", "1_000", "0x10", "1e3", "off", "true", "2024-01-31", "1.50", "+1", ".inf", "<<", "="]
AWKWARD = [
    *TEXTS,
    "a # b",
    "a: b",
    "[a",
    "{a}",
    "- a",
    "'a",
    "null",
    "",
    "a,b",
    "%a",
    "@a",
    "&a",
    "*a",
    "a${b",
    "!a",
    r"\${a}",
    r"b\\${a",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_keeps_its_text_wherever_it_stands(tmp_path: Path, text: str) -> None:
    """YAML 1.1 takes all of these for something else."""
    file = tmp_path / "a.yaml"
    file.write_text(
        f"run_dir: {text}\ndata.root: {text}\nslurm: {{account: {text}, setup: [{text}], environment: {{A: {text}}}}}"
    )
    typed = [f"run_dir={text}", f"data.root={text}", f"slurm.account={text}", f"slurm.setup=[{text}]"]
    for config in (
        load_config([str(file)]),
        load_config([*typed, f"slurm.environment.A={text}"]),
        load_config([*typed, f"slurm.environment={{A: {text}}}"]),
        load_config([f"run_dir='{text}'", *typed[1:], f'slurm.environment={{A: "{text}"}}']),
    ):
        assert config.run_dir == config.data.root == config.slurm.account == text
        assert (config.slurm.setup, config.slurm.environment) == ((text,), {"A": text})


def test_an_option_of_sbatch_is_a_text_or_a_flag(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("slurm: {sbatch: {begin: 16:00, nice: 010, exclusive: yes, 'hint': 'true'}}")
    expected = {"begin": "16:00", "nice": "010", "exclusive": True, "hint": "true"}
    read = load_config([str(tmp_path / "a.yaml")]).slurm.sbatch
    assert (read, {type(key) for key in read}) == (expected, {str})
    typed = ("begin=16:00", "nice=010", "exclusive=True", "hint='true'")
    assert load_config([f"slurm.sbatch.{pair}" for pair in typed]).slurm.sbatch == expected


ARGUMENTS = {
    "64": 64, "-1": -1, "0.5": 0.5, "1e-3": 0.001, "true": True, "False": False, "null": None, "None": None,
    "relu": "relu", "010": "010", "1:30": "1:30", "nan": "nan", "1e999": "1e999", "on": "on", "'64'": "64",
    "[2, 2.5, x]": [2, 2.5, "x"], "{a: {b: [1, '1']}}": {"a": {"b": [1, "1"]}}, "'1e-3'": "1e-3", "'None'": "None",
    "''": "", "'true'": "true", "'[1]'": "[1]",
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ARGUMENTS.items())
def test_an_argument_of_a_network_is_what_it_looks_like(tmp_path: Path, text: str, expected: Any) -> None:
    own = ["seed=3", "model.name=my:network"]
    (tmp_path / "a.yaml").write_text(f"seed: 3\nmodel: {{name: 'my:network', args: {{x: {text}}}}}")
    for config in (
        load_config([*own, f"model.args.x={text}"]),
        load_config([*own, f"model.args={{x: {text}}}"]),
        load_config([str(tmp_path / "a.yaml")]),
    ):
        (tmp_path / "b.yaml").write_text(to_yaml(config))
        for each in (config, load_config([str(tmp_path / "b.yaml")])):
            found = each.model.args["x"]
            assert (found, type(found)) == (expected, type(expected))


def test_an_argument_of_a_network_may_be_that_of_another_option() -> None:
    config = load_config(["seed=3", "model.name=my:network", "model.args.x=${seed}", "model.args.y=a ${seed}"])
    assert config.model.args == {"x": 3, "y": "a 3"}


def test_another_argument_of_a_network_changes_the_numbers() -> None:
    config = load_config(["model.name=my:network", "model.args.width=8"])
    assert changed_options(json.loads(json.dumps(to_flat(config))), config) == []
    saved = to_flat(load_config(["model.name=my:network", "model.args.width=4"]))
    assert changed_options(saved, config) == [("model.args", {"width": 4}, {"width": 8})]


@pytest.mark.parametrize(
    "text", ["010", "1:30", "0x10", "0o17", "1_000", "5.0", "1e3", "5,", "\uff11", "", "null", "~", "--5"]
)
def test_a_whole_number_is_decimal_digits(tmp_path: Path, text: str) -> None:
    refused_everywhere(tmp_path, "train.epochs", text, "is no whole number")
    refused_everywhere(tmp_path, "schedule.milestones", f"[3, '{text}']", "which is no whole number")


@pytest.mark.parametrize("text", ["0,1", "010", "1:30.5", "1_0.5", "01.5", "1e\u20133", "1e", ".", "x", "", "null"])
def test_a_number_is_decimal_digits(tmp_path: Path, text: str) -> None:
    refused_everywhere(tmp_path, "optim.lr", text, "is no number")
    refused_everywhere(tmp_path, "optim.betas", f"[0.5, '{text}']", "which is no number")


def refused_everywhere(folder: Path, key: str, text: str, reason: str) -> None:
    """In the same words on the command line and in both forms of a file."""
    group, _, name = key.partition(".")
    nested, flat = folder / "nested.yaml", folder / "flat.yaml"
    nested.write_text(f"{group}:\n  {name}: {text}\n")
    flat.write_text(f"{key}: {text}\n")
    said = []
    for argument in (f"{key}={text}", str(nested), str(flat)):
        with pytest.raises(ConfigError, match=reason) as caught:
            load_config([argument])
        said.append(str(caught.value).removeprefix(f"{argument}: "))
    assert len(set(said)) == 1
    assert said[0].startswith(f"{key}=")
    assert "\n" not in said[0]


def test_numbers_and_truth_values_are_written_in_the_usual_ways(tmp_path: Path) -> None:
    for text, number in (
        ("1e-1", 0.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("2", 2.0),
        ("1E+2", 100.0),
        ("+3", 3.0),
        ("'4'", 4.0),
    ):
        (tmp_path / "a.yaml").write_text(f"optim: {{lr: {text}}}")
        for argument in (f"optim.lr={text}", f"optim.lr = {text}", str(tmp_path / "a.yaml")):
            assert load_config([argument]).optim.lr == number
    for text in ("true", "True", "TRUE", "yes", "on", "1"):
        assert load_config([f"train.compile={text}"]).train.compile
    for text in ("false", "False", "no", "off", "0"):
        assert not load_config([f"augment.flip={text}"]).augment.flip


SOURCE_OF = {
    "data.folder": ["data.source=imagefolder"],
    "data.table": ["data.source=table"],
}
"""What must be said besides, for the option to be read."""


@pytest.mark.parametrize(
    "option", ["run_dir", "data.root", "data.folder", "data.table", "model.init_from", "resume.mode"]
)
def test_a_path_begins_at_home_where_it_begins_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    file = tmp_path / "a.yaml"
    for text, path in (
        ("~", "/home/somebody"),
        ("~/a b", "/home/somebody/a b"),
        ("~root/a", "/root/a"),
        ("./~", "./~"),
    ):
        file.write_text(f"{option}: {text}\n")
        for argument in (f"{option}={text}", str(file)):
            config = load_config([argument, *SOURCE_OF.get(option, [])])
            assert to_flat(config)[option] == path
    for text, reason in (("~nobody-here/a", "no such user"), ("$SCRATCH/a", "write ${oc.env:SCRATCH}")):
        file.write_text(f"{option}: {text}\n")
        for argument in (f"{option}={text}", str(file)):
            with pytest.raises(ConfigError, match=re.escape(reason)):
                load_config([argument])
    assert restore_data({}, ["data.root=~/a"]).root == "/home/somebody/a"


def test_null_is_refused_alike_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    for key, value in to_flat(Config()).items():
        (tmp_path / "a.yaml").write_text(f"{key}: null\n")
        said = []
        for argument in (f"{key}=null", str(tmp_path / "a.yaml")):
            with pytest.raises(ConfigError, match=re.escape(f"{key}=null is n")) as caught:
                load_config([argument])
            said.append(str(caught.value).removeprefix(f"{tmp_path}/a.yaml: "))
        assert said[0] == said[1]
        if isinstance(value, str) and "none of" not in said[0]:
            assert "is no value; leave the option out" in said[0]
    assert load_config(["run_dir='null'"]).run_dir == "null"


@pytest.mark.parametrize("text", AWKWARD)
def test_an_awkward_text_survives_the_resolved_configuration(tmp_path: Path, text: str) -> None:
    config = dataclasses.replace(
        load_config([]), run_dir=text or "x", slurm=SlurmConfig(setup=(text,), sbatch={"a": text})
    )
    (tmp_path / "a.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config([str(tmp_path / "a.yaml")]) == config


def test_files_from_other_editors_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    content = "# Größe\ntrain:\n  # epochs: 5\noptim: &a\n  lr: 0.5\nslurm:\n  environment: {<<: {A: b}, C: d}\n"
    for text, encoding in ((content, "utf-8"), (content, "utf-8-sig"), (content, "utf-16")):
        for end in ("\n", "\r\n"):
            file.write_bytes(text.replace("\n", end).encode(encoding))
            config = load_config([f"{file}\r", "seed=3\r"])
            assert (config.optim.lr, config.seed, config.slurm.environment) == (0.5, 3, {"A": "b", "C": "d"})


def test_the_path_of_a_file_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exp=3").mkdir()
    (tmp_path / "exp=3" / "a.yaml").write_text("seed: 4")
    monkeypatch.chdir(tmp_path)
    for name in ("exp=3/a.yaml", "./exp=3/a.yaml", f"{tmp_path}/exp=3/a.yaml"):
        config = load_config([name, "run_dir=b.yaml"])
        assert (config.seed, config.run_dir) == (4, "b.yaml")
    with pytest.raises(ConfigError, match=r"^/exp=3/missing.yaml: no such file"):
        load_config(["/exp=3/missing.yaml"])


SHIPPED = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_file_loads_as_its_header_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header is not None
    text = re.sub(r"\\\n# +", "", header[0])  # a command may go on in the next line
    commands = re.findall(r"^#   ((?:\./launch\.sh|torchrun|python)\b.*?)(?:  +\(.*)?$", text, re.MULTILINE)
    assert commands
    for command in commands:
        given = [word for word in shlex.split(command) if "=" in word.lstrip("-") or word.endswith(".yaml")]
        config = load_config([word for word in given if not word.startswith("-")], _ranks(command))
        assert config.run_dir.startswith(f"runs/{path.stem}" if given else "runs/cifar10")


def _ranks(command: str) -> int:
    return int((re.search(r"nproc_per_node=(\d+)", command) or ["", "1"])[1])


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
        ("train.epochs=many", "train.epochs=many is no whole number"),
        ("train.epochs=0", "train.epochs=0 is out of range: it must be >= 1"),
        ("train.lr=3", "unknown option 'train.lr'; did you mean 'optim.lr'?"),
        ("batch_size=3", "did you mean 'train.global_batch_size' or 'train.eval_batch_size'?"),
        ("--train.epochs=5", "did you mean 'train.epochs'?"),
        ("train.global-batch-size=64", "did you mean 'train.global_batch_size'?"),
        ("train.epochs:5", "did you mean 'train.epochs'?"),
        ("cifar10", "did you mean 'configs/cifar10.yaml'?"),
        ("train.epochs.x=5", "unknown option 'train.epochs.x'; did you mean 'train.epochs'?"),
        ("train=", "train is a group"),
        ("train.compile=2", "train.compile=2 is no truth value; write true or false"),
        ("train.amp=true", "train.amp=true is none of auto, off, bf16, fp16"),
        ("train.amp=BF16", "did you mean bf16?"),
        ("train.device=gpu", "train.device=gpu is none of auto, cpu, cuda"),
        ("train.device=cuda:0", "did you mean cuda?"),
        ("SEED=3", "did you mean 'seed'?"),
        ("model.name=ResNet-18", "did you mean 'resnet18'?"),
        ("model.name=my/networks.py:build", "write package.module:function, e.g. my.networks:build"),
        ("a\nb.yaml", r"'a\nb.yaml': no such file"),
        ("seed=3\nlr=2", r"seed='3\nlr=2' is no whole number"),
        ("schedule.milestones=10,20", "is no list; write it in brackets: [10,20]"),
        ("augment.crop_area=0.25", "is no list of 2; write them in brackets: [..., ...]"),
        ("augment.crop_area=0.25,1", "is no list; write it in brackets: [0.25,1]"),
        ("schedule.milestones='[10]'", "is no list; write it in brackets: [10]"),
        ("schedule.milestones=[1", "schedule.milestones=[1 cannot be read: "),
        ("data.mean=[0,0,[0]]", "holds [0], which is a list"),
        ("slurm.environment=A", "slurm.environment=A is no mapping"),
        ("slurm.sbatch={a: null}", "slurm.sbatch={...} holds a=null, which is no value"),
        ("optim.lr=1e\u20133", "' is EN DASH)"),
        ("run_dir=${oc.env:NOT_THERE}", "Environment variable 'NOT_THERE' not found"),
        ("run_dir=${NOT_THERE}", "write ${group.option}, ${oc.env:VARIABLE} or"),
        ("run_dir=${run_dir}", "run_dir=${run_dir}: Recursive interpolation"),
        ("data.root=", "data.root= is empty"),
        ("optim.lr=nan", "optim.lr=nan is out of range"),
        ("optim.lr=inf", "optim.lr=inf is out of range"),
        ("data.mean=[1,2]", "data.mean=[1,2]"),
        ("data.std=[0,1,1]", "data.std"),
        ("data.source=imagenet", "data.source"),
        ("data.source=imagefolder", "data.folder"),
        ("data.source=webdataset", "needs data.folder=<folder with train-*.tar"),
        ("data.source=table", "needs data.table=<CSV file"),
        ("data.columns.name=a", "data.columns.name='a': names are given to path, label, split alone"),
        ("data.splits.val=a", "data.splits.val='a': names are given to train, test alone"),
        ("data.splits.test=", "data.splits.test=''"),
        ("data.image_size=100000", "data.image_size=100000"),
        ("augment.crop_area=[0.08,1]", "set data.store=encoded, or augment.crop_area=[1,1]"),
        ("augment.crop_area=[1,0.08]", "augment.crop_area=[1.0, 0.08] must rise, e.g. augment.crop_area=[0.08,1.0]"),
        ("augment.crop_area=[0,1]", "augment.crop_area"),
        ("train.amp=fp8", "train.amp"),
        ("model.name=resnet", "package.module:function"),
        ("model.name=se_resent18", "did you mean 'se_resnet18'"),
        ("model.name=xyz", "--help model lists them"),
        ("model.reduction=0", "model.reduction=0 is out of range: it must be >= 1"),
        ("model.name=inception_v3", "set data.image_size=75"),
        (
            "model.args.width=4",
            "model.args.width=4 is for package.module:function and timm:NAME, not for",
        ),
        ("model.name=timm:resnet50.a1_in1k", "write model.name=timm:resnet50 model.init_from=timm:resnet50.a1_in1k"),
        ("model.name=timm:hf-hub:a/b", "write timm:NAME with a name of timm.list_models()"),
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
        ("train.epochs", "write train.epochs=VALUE, without spaces"),
        ("configs", "to train on a folder of images: data.source=imagefolder data.folder=configs"),
        ("my labels.csv", "to train on a table of images: data.source=table data.table='my labels.csv'"),
        ("train.accumulate=3", "use a multiple of 3, e.g. 129"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    argument: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
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
        ("optim: {lr: 1}\noptim.lr: 2", "optim.lr is given twice"),
        ("seed: 1\nseed: 1", "line 1: 'seed' is given twice"),
        ("optim:\n\tlr: 1", "line 2: found character '\\t' that cannot start any token; use spaces"),
        ("seed: 1\n---\nseed: 2", "but found another document"),
        (b"seed: \xf6", "unacceptable character #x00f6"),
        (
            "slurm: {setup: 'module load a\n\n  module load b'}",
            r"is no list; write it in brackets: ['module load a\nmod",
        ),
        ("slurm: {account: [a]}", "slurm.account=[a] is a list, but this option has one value; put text in quotes"),
        ("seed: &a [*a]", "an alias of itself"),
        ("optim: {freeze: [*]}", "found ']'; put a text that begins with * or & in quotes"),
        ("optim: {freeze: [*layer1]}", "undefined alias 'layer1'; put a text that begins with * or & in quotes"),
        ("slurm: {setup: [&a [a, a], &b [*a, *a]" + ", *b" * 9_999 + "]}", "more than 10,000 values"),
        ("[" * 5000, "nested too deeply"),
        ("seed: ${oc.env:NOT_THERE}", "seed=${oc.env:NOT_THERE}: "),
        ("\x00", "not a readable YAML file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str | bytes, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"bad\.yaml") as caught:
        load_config([str(file)])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("model.whiten=true", "model.init_from=a.pt"), "would replace the first layer of model.init_from=a.pt"),
        (("optim.bias_lr=1", "optim.decay_norms_and_biases=true"), "norms and biases that do not decay"),
        (
            (*PHOTOS, "data.resident=on"),
            "data.resident=on keeps decoded images on the GPU, and data.store=encoded",
        ),
        ((*PHOTOS, "data.store=encoded", "data.resident=on"), "and data.store=encoded decodes them"),
        (
            (*PHOTOS, "augment.crop_area=[0.08,1]"),
            "augment.crop_padding=4 both move the image; set augment.crop_padding=0",
        ),
        ((*PHOTOS, "augment.crop_area=[0.08,1]", "data.store=pixels"), "and data.store=pixels has them scaled already"),
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


def test_a_store_counts_as_changed_where_the_images_are_kept_as_another_kind() -> None:
    for size, kind, other in ((64, "pixels", "encoded"), (65, "encoded", "pixels")):
        files = ["data.source=imagefolder", "data.folder=photos", f"data.image_size={size}"]
        auto, same, changed = (load_config([*files, f"data.store={store}"]) for store in ("auto", kind, other))
        for one, now in ((auto, same), (same, auto), (auto, auto)):
            assert changed_options(to_flat(one), now) == []
        assert changed_options(to_flat(auto), changed) == [("data.store", kind, other)]
        assert changed_options(to_flat(changed), auto) == [("data.store", other, kind)]
        before = to_flat(auto)
        del before["data.store"]  # as versions wrote it that had pixels alone
        assert changed_options(before, auto) == ([] if kind == "pixels" else [("data.store", "pixels", "encoded")])
        assert restore_data(before).store == "pixels"


def test_what_a_run_of_before_wrote_as_yaml_keeps_its_images_as_pixels(tmp_path: Path) -> None:
    recipe = tmp_path / "config.yaml"
    whole = to_yaml(load_config(["data.source=imagefolder", "data.folder=photos", "data.image_size=224"]))
    for text, store in ((whole, "auto"), (whole.replace("  store: auto\n", ""), "pixels")):
        recipe.write_text(text)
        assert load_config([str(recipe)]).data.store == store
    assert load_config([str(recipe), "data.store=encoded"]).data.store == "encoded"
    recipe.write_text("data: {source: imagefolder, folder: photos, image_size: 224}\nrun_dir: a\nseed: 0")
    assert load_config([str(recipe)]).data.store == "auto"


def test_what_may_change_on_resume_what_makes_groups_and_what_is_in_the_card_are_three_lists() -> None:
    """An option for which they differ is named here."""
    free, compared, in_card = (those(name) for name in ("free", "compared", "in_card"))
    every = {key for key, _ in options()}
    assert free & compared == {"data.folder", "data.table"}  # they can be moved; others may hold other images
    assert every - free - compared == {"seed"}  # the draw, over which the mean of a group is taken
    assert free & in_card == set()  # paths, among others, which the card of a public network does not tell
    assert every - free - in_card == set()
    alone = {key.rpartition(".")[0] for key in every} - {key.rpartition(".")[0] for key in compared | in_card}
    assert alone == {"resume", "checkpoint", "log", "distributed", "slurm"}
    assert {key for key in free if key.partition(".")[0] not in alone} == {
        *("run_dir", "notify", "data.root", "data.folder", "data.table", "data.stage", "data.resident"),
        *("data.decode_threads", "train.threads_per_rank"),
        *("train.eval_batch_size", "train.desync_check_every", "train.device"),
    }
    assert those("free", are=False) == every - free


def test_the_manual_describes_every_option() -> None:
    lines = help_text(["all"]).splitlines()
    for key in to_flat(Config()):
        [at] = [i for i, line in enumerate(lines) if line.strip().startswith((f"{key} =", f"{key}* ="))]
        assert len(lines[at + 1].strip()) > 5, f"{key} has no text"


def test_the_first_page_of_the_manual_fits_two_screens_and_leads_to_every_group() -> None:
    lines = help_text().splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 100
    named = [line.split()[0] for line in lines if line.startswith("  ")]
    assert len([key for key in to_flat(Config()) if key in named]) == 10
    every = [name for _, name in groups() if name]
    assert [name for name in named if name in every] == every
    assert "slurm." not in help_text()
    for group in every:
        shown = [line.split()[0].rstrip("*") for line in help_text([group]).splitlines() if re.match(r"  \w", line)]
        assert shown == [key for key, _ in options() if key.startswith(f"{group}.")]
    assert help_text(["log", "data"]) == f"{help_text(['log'])}\n\n{help_text(['data'])}"


@pytest.mark.parametrize(
    ("topic", "hint"),
    [("dat", "did you mean 'data'?"), ("optim.lr", "did you mean 'optim'?"), ("x", "there is resume, ")],
)
def test_help_about_what_is_no_group_is_one_line_and_code_2(topic: str, hint: str) -> None:
    for command in (["train_ddp.py"], ["-m", "senet.config"], ["-m", "senet.launch", "train"]):
        done = subprocess.run(
            [sys.executable, *command, "--help", topic], cwd=REPOSITORY, capture_output=True, text=True, timeout=180
        )
        assert (done.returncode, done.stdout) == (2, "")
        [line] = done.stderr.splitlines()
        assert f"--help {topic}: no such group of options; {hint}" in line


def test_hints_name_the_command_as_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for called, typed in (("", f"{shlex.quote(sys.executable)} train_ddp.py"), ("../launch.sh", "../launch.sh train")):
        monkeypatch.setenv("PATH", "/nowhere")  # there is no python that is this one
        monkeypatch.delenv("SENET_COMMAND", raising=False)
        if called:
            monkeypatch.setenv("SENET_COMMAND", called)
        assert help_text().startswith(f"usage: {typed} [FILE.yaml ...]")
        with pytest.raises(ConfigError, match=f"see {typed} --help data$"):
            restore_data({"data.root": 1})


def test_a_package_without_its_checkout_says_so_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "senet", tmp_path / "senet")
    command = [sys.executable, "-m", "senet.config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"configs/cifar10.yaml is not in {tmp_path}; " in line
    assert line.endswith("pip install -e .")


def test_help_and_check_import_neither_torch_nor_numpy() -> None:
    code = "import sys; from senet.config.__main__ import main; main(sys.argv[1:]); "
    code += "print({'torch', 'numpy'} & set(sys.modules))"
    for argument in ("--help", "configs/quickstart.yaml"):
        done = subprocess.run([sys.executable, "-c", code, argument], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "set()", done.stderr
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "train_ddp.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "optim.lr = 0.1" in done.stdout
    assert "slurm.partition" not in done.stdout
    assert " torch\n" not in done.stderr


def test_data_options_of_a_file_are_taken_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    for folder in ("/data/set #2", "${oc.env:SECRET}", "${", "'x'", "null", "007"):
        saved = {"data.source": "imagefolder", "data.folder": folder, "data.std": [0.5, 0.5, 0.25], "data.younger": 1}
        data = restore_data(saved, ["data.root=/else where", "data.decode_threads=3"])
        others = {"store": "pixels", "std": (0.5, 0.5, 0.25), "decode_threads": 3}  # there was no other store then
        assert data == DataConfig("imagefolder", "/else where", folder, **others)
        assert restore_data(saved, ["data.folder=a"]).folder == "a"
    saved |= {"data.splits": {"train": "fit", "test": "val"}}
    assert restore_data(saved, ["data.splits.test=dev"]).splits == {"train": "fit", "test": "dev"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "nonsense"),
        ("store", "nonsense"),
        ("resident", "nonsense"),
        ("root", ["a"]),
        ("root", "a\nb"),
        ("image_size", 50_000),
        ("image_size", "32"),
        ("image_size", True),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, "0.5"]),
        ("mean", [0.5, 0.5, math.nan]),
        ("std", [0.5, 0.5, 0]),
        ("splits", ["train"]),
        ("splits", {"test": 3}),
    ],
)
def test_a_data_option_of_a_file_that_training_would_refuse_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}(\.test)?="):
        restore_data({f"data.{key}": value})
    with pytest.raises(ConfigError, match="needs data"):
        restore_data({}, ["data.source=imagefolder"])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["data.folder=/my", "images"], "quote a value with spaces: 'data.folder=/my images'"),
        (["run_dir=", "runs/q"], "leave out the space: run_dir=runs/q"),
        (["optim.lr=0.05,", "0.1"], "leave out the space behind the comma: optim.lr=0.05,0.1"),
        (["optim.freeze=[*]"], "put a text that begins with * or & in quotes"),
        (["train.epochs", "=", "3"], "write train.epochs=VALUE, without spaces"),
        (["seed=1", "epochs"], "did you mean 'train.epochs'?"),
        (["slurm.gpus=4"], "did you mean 'slurm.gpus_per_node'?"),
        (["data.folder=/my"], "add data.source=imagefolder, or leave data.folder out"),
        (["data.table=a.csv"], "add data.source=table, or leave data.table out"),
        (["data.splits.test=val"], "add data.source=imagefolder, or leave data.splits out"),
        (["data.source=webdataset", "data.folder=a", "data.columns.path=b"], "of shards data.columns.label is"),
    ],
)
def test_a_space_too_many_and_an_option_that_would_be_ignored_are_named(arguments: list[str], hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(hint) + "$"):
        load_config(arguments)
