"""A trained network on the test split, against a plain loop."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from senet import REPOSITORY, evaluate, predict
from senet.config.options import DataConfig
from senet.data.samplers import ImageData
from senet.data.splits import Split
from senet.errors import ConfigError
from senet.evaluate import _predictions, _text, main
from senet.inference.network import load_trained
from senet.inference.scoring import Evaluation, open_test_data
from senet.report.__main__ import main as report_main
from senet.report.examine import predictions_of
from senet.rundir.checkpoint import find_checkpoint, is_best
from senet.training.scores import Scores
from tests.conftest import Once, Train

TINY = "tests.networks:tiny_senet"


@pytest.fixture
def images(digits: ImageData, once: Once) -> Path:
    """Some of the digits as an image folder, in sizes that have to be scaled and cropped."""

    def write(root: Path) -> None:
        for split, count in ((digits.train, 150), (digits.test, 100)):
            for index in range(count):
                name = f"digit {digits.classes[int(split.labels[index])]}"
                path = root / ("train" if split is digits.train else "test") / name / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(split.images[index])
                picture.resize((16 + index % 9, 16 + index % 5), Image.Resampling.BICUBIC).save(path)

    return once("images", write)


@pytest.fixture
def images_run(train_here: Train, images: Path, once: Once) -> Path:
    """The small network on that folder, trained once for this file."""
    options = ("data.source=imagefolder", f"data.folder={images}", f"data.root={images}-data", "train.epochs=1")
    brief = ("train.amp=off", "train.global_batch_size=50")
    return once("images_run", lambda run_dir: train_here(run_dir, *options, *brief))


def test_a_report_names_the_files_of_mistakes(images_run: Path, images: Path, tmp_path: Path) -> None:
    made, _ = predictions_of(images_run, tmp_path / "new.npz", model_name=TINY, device="cpu")
    assert made is not None
    assert len(made.mistake_files) == len(made.mistakes) > 10
    for index, name in zip(made.mistakes, made.mistake_files, strict=True):
        assert (images / name).is_file()
        assert Path(name).parts[:2] == ("test", made.classes[made.labels_N[index]])


def arguments(run_dir: Path, *more: object) -> list[str]:
    return [str(run_dir), "--model", TINY, "--device", "cpu", *map(str, more)]


def test_the_scores_are_those_of_a_plain_loop(
    finished_run: Path, digits: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(finished_run, "--json", "--batch-size", 77)) == 0
    report = json.loads(capsys.readouterr().out)
    trained = load_trained(finished_run, model_name=TINY, device="cpu")
    losses, hits, in_five = [], [], 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # single images gain nothing from more
    for pixels, label in zip(torch.tensor(digits.test.images), digits.test.labels, strict=True):
        logits_K = trained.logits(pixels[None])[0]
        losses.append(float(F.cross_entropy(logits_K, label)))
        order = logits_K.argsort(descending=True).tolist()
        hits.append(order[0] == int(label))
        in_five += int(label) in order[:5]
    torch.set_num_threads(threads)
    assert (report["images"], report["same_data"], report["weights"]) == (360, True, "raw")
    assert report["top1"] == 100 * sum(hits) / 360
    assert report["top5"] == 100 * in_five / 360
    assert report["loss"] == pytest.approx(sum(losses) / 360, abs=1e-5)
    for number, row in enumerate(report["classes"]):
        own = [hit for hit, label in zip(hits, digits.test.labels, strict=True) if label == number]
        expected = {"class": digits.classes[number], "images": len(own), "top1": 100 * sum(own) / len(own)}
        assert row == expected


def test_a_flip_average_is_over_an_image_and_its_mirror_image(
    finished_run: Path, digits: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(finished_run, "--json", "--flip-average")) == 0
    report = json.loads(capsys.readouterr().out)
    trained = load_trained(finished_run, model_name=TINY, device="cpu")
    pixels = torch.tensor(digits.test.images)
    logits = (trained.logits(pixels) + trained.logits(pixels.flip(2))) / 2
    assert report["top1"] == pytest.approx(100 * (logits.argmax(1) == digits.test.labels).float().mean().item())
    assert report["loss"] == pytest.approx(F.cross_entropy(logits, digits.test.labels).item(), abs=1e-5)
    assert main(arguments(finished_run, "--flip-average")) == 0
    assert "360 test images, each with its mirror image" in capsys.readouterr().out


def test_a_run_that_held_images_out_is_evaluated_on_the_test_images(
    train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = train_here(tmp_path, "train.epochs=1", "train.amp=off", "train.ema_decay=0", "data.holdout=100")
    assert main(arguments(tmp_path, "--json")) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["images"], report["same_data"]) == (360, True)
    assert held.result["test_top1"] != report["top1"]


def test_the_table_has_a_line_for_each_class(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(finished_run)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("360 test images")
    assert lines[1].startswith("top-1 ")
    assert [line.split()[0] for line in lines[4:]] == [str(digit) for digit in range(10)]
    assert sum(int(line.split()[1]) for line in lines[4:]) == 360


def test_a_run_directory_stands_for_its_best_checkpoint_and_the_first_line_says_so(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = find_checkpoint(finished_run)
    assert is_best(best)
    assert main(arguments(finished_run)) == 0
    assert capsys.readouterr().out.startswith(f"{best} (best checkpoint, step ")
    assert main(arguments(best)) == 0  # it is not known whether another is better
    assert capsys.readouterr().out.startswith(f"{best} (step ")


@pytest.mark.parametrize(("command", "needed"), [(main, "network"), (report_main, "RUN_DIR")])
def test_options_of_the_images_are_not_required(command: Callable[[Sequence[str]], int], needed: str) -> None:
    with pytest.raises(ConfigError, match=f"required: {needed};"):
        command([])


def test_of_many_classes_the_lowest_have_a_line() -> None:
    rows = [
        {"class": f"c{number}", "images": number > 0, "top1": (number * 7919) % 1000 / 10} for number in range(1000)
    ]
    rows[0]["top1"] = None
    report = {"checkpoint": "a", "step": 1, "images": 999, "loss": 1.0, "top1": 1.0, "top5": 1.0, "classes": rows}
    report["weights"] = "raw"
    report["best"] = False
    lines = _text(report | {"flip_average": False}).splitlines()
    assert lines[0] == "a (step 1, raw weights), 999 test images"
    lowest = sorted(rows[1:], key=lambda row: row["top1"])[:20]
    assert [line.split()[0] for line in lines[4:-1]] == [row["class"] for row in lowest]
    assert lines[-1] == "these are the lowest; --json has the other 980 classes too"
    assert lines[1] == "top-1 1.00 %   top-5 1.00 %   loss 1.0000"
    for count in (20, 21):
        lines = _text(report | {"flip_average": False, "classes": rows[1 : count + 1]}).splitlines()
        assert len(lines) == (4 + 20 if count == 20 else 4 + 20 + 1)


def test_the_file_of_a_prediction_need_not_have_text_for_a_name(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"test/ant/caf\xe9.png")
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "train").mkdir()
    split = Split(np.zeros((1, 16, 16, 3), np.uint8), np.zeros(1, np.int64))
    result = Evaluation(Scores(1, 1.0, 100.0, None), np.zeros(1, np.int64), np.array([0.5]))
    config = DataConfig(source="imagefolder", folder=str(tmp_path))
    table = _predictions(result, ImageData(split, split, ("ant",), ""), config)
    assert table.splitlines()[1] == b"0," + os.fsencode(path) + b",ant,ant,0.500000"


def test_a_class_name_cannot_command_the_terminal() -> None:
    row = {"class": "\x1b]0;x\x07red", "images": 1, "top1": 100.0}
    lines = _text(
        {"checkpoint": "a", "step": "\x1b", "images": 1, "loss": 1.0, "top1": 1.0, "top5": 1.0, "classes": [row]}
        | {"best": True, "flip_average": False, "weights": "\x1b"}
    )
    table = predict._format("table", ["a.png"], [row["class"]])(predict.Prediction("a.png", ((row["class"], 0.5),)))
    assert lines.splitlines()[-1] == "?]0;x?red       1 100.00 %"
    assert table == "a.png   ?]0;x?red  50.00 %"
    assert "\x1b" not in lines


def test_predict_and_evaluate_agree_on_every_image_of_a_folder(
    images_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(images_run, "--predictions", tmp_path / "evaluated.csv")) == 0
    capsys.readouterr()
    assert predict.main(arguments(images_run, images / "test", "--csv", "--top", 1, "--batch-size", 33)) == 0
    predicted = {row["input"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    evaluated = _rows(tmp_path / "evaluated.csv")
    assert len(evaluated) == len(predicted) == 100
    for row in evaluated:
        assert Path(row["path"]).parent.name == row["label"]
        assert predicted[row["path"]]["class"] == row["prediction"]
        assert float(predicted[row["path"]]["probability"]) == pytest.approx(float(row["probability"]), abs=2e-6)


@pytest.mark.ranks
def test_two_ranks_count_each_image_once_and_say_so_once(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, shared = tmp_path / "alone.csv", tmp_path / "shared.csv"
    assert main(arguments(finished_run, "--json", "--predictions", alone)) == 0
    expected = json.loads(capsys.readouterr().out)
    two = _torchrun(*arguments(finished_run, "--json", "--predictions", shared, "--batch-size", 7))
    found = json.loads(two.stdout)
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), abs=1e-6)
    assert found == expected
    for one, other in zip(*map(_rows, (alone, shared)), strict=True):
        assert float(one.pop("probability")) == pytest.approx(float(other.pop("probability")), abs=2e-6)
        assert one == other


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("data.source=imagefolder", "data.folder=/nowhere"), "data.folder=/nowhere: no such folder"),
        (("--predictions", "/sys/a.csv"), "--predictions /sys/a.csv: /sys cannot be written ("),
    ],
)
def test_two_ranks_refuse_in_one_line(finished_run: Path, options: tuple[str, ...], text: str) -> None:
    refused = _torchrun(*arguments(finished_run, *options))
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("evaluate:")]
    assert line.startswith(f"evaluate: {text}")
    assert refused.returncode != 0
    assert 'evaluate.py", line' not in refused.stderr  # torchrun's own report has a traceback, of torchrun


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def _torchrun(*args: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "senet.evaluate", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=400)


def test_what_is_no_file_is_not_replaced(finished_run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe: no file, and cannot be replaced"):
        main(arguments(finished_run, "--predictions", tmp_path / "pipe"))
    assert (tmp_path / "pipe").is_fifo()


def test_predictions_that_cannot_be_written_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"--predictions /sys/a.csv: /sys cannot be written \("):
        main(["no run", "--predictions", "/sys/a.csv"])


def test_scores_are_told_before_predictions_are_written(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    monkeypatch.setattr(evaluate, "replace_file", lambda *_: told.append(capsys.readouterr().out))
    assert main(arguments(finished_run, "--predictions", tmp_path / "a.csv")) == 0
    assert "360 test images" in told[0]


def test_a_gpu_that_is_not_there_is_refused_in_the_commands_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="set --device=cpu or --device=auto"):
        main(["run", "--device", "cuda"])


def test_data_of_other_classes_are_refused_with_both_named(finished_run: Path, images: Path) -> None:
    options = ("data.source=imagefolder", f"data.folder={images}", f"data.root={images}-data")
    with pytest.raises(ConfigError, match=r"\(10: digit 0, digit 1, .*\) are not those of .*\(10: 0, 1, 2"):
        main(arguments(finished_run, *options))


def test_other_images_than_those_trained_with_are_mentioned(
    images_run: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, tmp_path / "images")
    options = (f"data.folder={tmp_path / 'images'}", f"data.root={tmp_path}", "--json")
    assert main(arguments(images_run, *options)) == 0  # the same content in another place
    assert json.loads(capsys.readouterr().out)["same_data"] is True
    assert caplog.text == ""
    changed = next((tmp_path / "images/test").glob("*/*.png"))
    Image.new("RGB", (20, 20), "red").save(changed)
    assert main(arguments(images_run, *options)) == 0
    assert json.loads(capsys.readouterr().out)["same_data"] is False
    assert "the images are not those of the training" in caplog.text


def test_what_the_network_fixes_cannot_be_set(finished_run: Path) -> None:
    trained = load_trained(finished_run, model_name=TINY, device="cpu")
    for pair in ("data.mean=[0,0,0]", "train.epochs=3", "nonsense", "data.root"):
        with pytest.raises(ConfigError, match=r"only data\.source"):
            open_test_data(trained.manifest, trained.checkpoint, [pair])
    with pytest.raises(ConfigError, match=r"data\.source"):
        open_test_data(trained.manifest, trained.checkpoint, ["data.source=nonsense"])


def test_a_file_does_not_choose_where_images_are_written(finished_run: Path, tmp_path: Path) -> None:
    trained = load_trained(finished_run, model_name=TINY, device="cpu")
    manifest = {**trained.manifest, "config": trained.manifest["config"] | {"data.root": str(tmp_path / "chosen")}}
    with pytest.raises(ConfigError, match=r"no decoded images in /.*/stores/digits.*data\.root="):
        open_test_data(manifest, trained.checkpoint, [])
    assert not (tmp_path / "chosen").exists()
    data, config = open_test_data(manifest, trained.checkpoint, [f"data.root={tmp_path / 'said'}"])
    assert (data.fingerprint, config.root) == (trained.manifest["data"], str(tmp_path / "said"))
