"""A report shows what the files contain, and does not change when it is made again."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from senet.data.samplers import ImageData
from senet.data.splits import Split
from senet.errors import ConfigError
from senet.inference.network import load_trained
from senet.report import examine, figures
from senet.report.__main__ import main, to_tensorboard, write_report
from senet.report.analysis import GateTally, Predictions, calibration, most_probable
from senet.report.classes import Confusions
from senet.report.curves import curves, images
from senet.report.drawings import draw
from senet.report.figures import class_accuracy, to_svg
from senet.report.page import render
from senet.report.seen import seen
from senet.rundir.history import Run, names, read_run
from tests.browser import browser, needs_browser, open_page
from tests.conftest import Once, Train
from tests.harness import StopAt, rows

TINY = "tests.networks:tiny_senet"
FIGURES = {
    *("loss", "accuracy", "learning_rate", "hours", "classes", "confusion", "reliability"),
    *("samples", "mistakes", "gates", "gate_shares"),
}
HOSTILE = (
    "<script>alert(1)</script>",
    '" onerror="alert(2)',
    "$\\frac{$",
    "{{ 7 * 7 }}",
    "a\nb\x01",
    "&amp;'",
    "猫",
    "%s",
    "-",
    "<b>",
)


@pytest.fixture
def reported(train_here: Train, data_root: Path, once: Once) -> Path:
    """A run that was stopped once, with its report; the images it was made from are gone. To be read only."""

    def report(folder: Path) -> None:
        data = shutil.copytree(data_root, folder / "data")
        options = (f"data.root={data}", "log.to=[tensorboard]", "train.amp=off")
        train_here(folder / "run", *options, stop=StopAt(30))
        train_here(folder / "run", *options)
        write_report([folder / "run"], model_name=TINY, device="cpu")
        shutil.rmtree(data)

    return once("reported", report) / "run"


@pytest.fixture
def run_dir(reported: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(reported, tmp_path / "copy")


def predictions_in(run_dir: Path) -> Predictions:
    predictions = Predictions.load(run_dir / "report" / "predictions.npz")
    assert predictions is not None
    return predictions


@pytest.mark.slow
def test_a_report_of_a_copy_without_images_and_network_is_the_same_byte_for_byte(reported: Path, run_dir: Path) -> None:
    first = {path.name: path.read_bytes() for path in (reported / "report").iterdir()}
    assert first.keys() == {"predictions.npz", "report.html", *(f"{name}.svg" for name in FIGURES)}
    (run_dir / "report" / "report.html").unlink()
    (run_dir / "report" / "comparison_loss.svg").touch()  # of an earlier report
    assert main([str(run_dir)]) == 0
    assert {path.name: path.read_bytes() for path in (run_dir / "report").iterdir()} == first
    page = first["report.html"].decode()
    assert page.count("<img ") == len(FIGURES)
    assert not [word for word in ("http:", "https:", "//", "url(") if word in re.sub('base64,[^"]*', "", page)]


def test_tensorboard_has_each_figure_once_after_a_second_report(run_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def images() -> dict[str, int]:
        [file] = (run_dir / "tensorboard" / "report").iterdir()
        events = EventAccumulator(str(file))
        events.Reload()
        return {tag: len(events.Images(tag)) for tag in events.Tags()["images"]}

    assert images() == {f"report/{name}": 1 for name in FIGURES}
    run = read_run(run_dir)
    to_tensorboard(run, draw([run], None))
    assert images() == {f"report/{name}": 1 for name in ("loss", "accuracy", "learning_rate", "hours")}


def test_a_report_without_images_and_without_predictions_says_so(run_dir: Path) -> None:
    (run_dir / "report" / "predictions.npz").write_bytes(b"PK damaged")
    assert main([str(run_dir)]) == 0
    page = (run_dir / "report" / "report.html").read_text()
    assert "the test images are not here: data.source=digits: no decoded images in" in page
    assert {path.stem for path in (run_dir / "report").glob("*.svg")} == {"loss", "accuracy", "learning_rate", "hours"}
    shutil.rmtree(run_dir / "checkpoints")
    assert main([str(run_dir)]) == 0
    assert "the run directory holds no checkpoint" in (run_dir / "report" / "report.html").read_text()


def test_predictions_of_another_checkpoint_are_made_anew_of_images_that_have_moved(
    run_dir: Path, data_root: Path
) -> None:
    file = run_dir / "report" / "predictions.npz"
    expected = predictions_in(run_dir)
    dataclasses.replace(expected, sha256="0" * 64, labels_N=expected.labels_N[::-1]).save(file)
    options = [f"data.root={data_root}"]
    found, why = examine.predictions_of(run_dir, file, model_name=TINY, device="cpu", overrides=options)
    assert (found is not None, why) == (True, "")
    again = predictions_in(run_dir)
    for name, value in vars(expected).items():
        np.testing.assert_equal(getattr(again, name), value)


def test_a_matplotlibrc_does_not_change_the_bytes() -> None:
    def drawn() -> bytes:
        return to_svg(class_accuracy(np.array([50.0, 25.0]), ["a", "b"], 37.5))

    plain = drawn()
    with matplotlib.rc_context({"axes.labelsize": 20, "savefig.facecolor": "red", "savefig.bbox": "tight"}):
        assert drawn() == plain
        assert matplotlib.rcParams["axes.labelsize"] == 20  # put back


def test_damaged_predictions_are_none_wherever_the_damage_is(tmp_path: Path) -> None:
    rows = np.tile(np.random.default_rng(0).random((20, 3), np.float32), (5, 1))  # compressible, as real ones
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    one, gates = np.zeros(1, np.int64), {"se": rows[:3]}
    top = most_probable(rows)
    Predictions(
        "0", "a.pt", False, ("a", "b", "c"), *top, np.arange(100) % 3, one, pixels, one, pixels, gates, rows[0, :1]
    ).save(tmp_path / "whole.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.npz"]
    whole = (tmp_path / "whole.npz").read_bytes()
    found = []
    for position in range(0, len(whole), 11):
        (tmp_path / "damaged.npz").write_bytes(
            whole[:position] + bytes(255 - byte for byte in whole[position : position + 3]) + whole[position + 3 :]
        )
        found.append(Predictions.load(tmp_path / "damaged.npz"))
    assert found.count(None) > len(found) / 2  # the others change bytes that are not read, such as dates
    assert Predictions.load(tmp_path / "whole.npz") is not None


def test_predictions_of_a_checkpoint_that_is_gone_are_used(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    file = run_dir / "report" / "predictions.npz"
    found, why = examine.predictions_of(run_dir, file, model_name="", device="cpu")
    assert found is not None
    assert (found.sha256, why) == (predictions_in(run_dir).sha256, "")


def test_test_images_of_other_classes_are_refused(run_dir: Path, data_root: Path, tmp_path: Path) -> None:
    (run_dir / "report" / "predictions.npz").unlink()
    shutil.copytree(data_root, tmp_path / "data")
    meta = tmp_path / "data/stores/digits-16/meta.json"
    meta.write_text(meta.read_text().replace('"9"', '"nine"'))
    with pytest.raises(ConfigError, match=r"8, nine\) are not those of .*8, 9\)"):
        main([str(run_dir), f"data.root={tmp_path / 'data'}"])


@pytest.mark.slow
def test_a_run_directory_may_have_an_equals_sign_in_its_name_and_other_options_are_refused(
    run_dir: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "lr=0.1"
    shutil.copytree(run_dir, copy)
    (copy / "report" / "predictions.npz").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'optim.lr=1': only data.source, data.root"):
        main(["lr=0.1", "optim.lr=1"])
    with pytest.raises(ConfigError, match="no RUN_DIR"):
        main([f"data.root={data_root}"])
    own = ["--device", "cpu", "--model", "tests.networks:tiny_senet"]
    assert main([*own, "lr=0.1", f"{tmp_path}/lr=0.1", f"data.root={data_root}"]) == 0
    assert predictions_in(copy).sha256 == predictions_in(run_dir).sha256


def test_the_accuracy_is_the_one_that_training_wrote_down(run_dir: Path) -> None:
    predictions, best = predictions_in(run_dir), rows(run_dir, "epoch")[-1]
    assert best["best_epoch"] == best["epoch"]
    assert predictions.accuracy == pytest.approx(best["best_top1"])
    assert predictions.top5 == pytest.approx(best["test_top5"])


def test_calibration_error_is_that_of_hand_arithmetic() -> None:
    confidences = np.array([0.05, 0.2, 0.5, 0.5, 0.95, 1.0])
    is_right = np.array([False, True, True, False, True, True])
    bins = calibration(confidences, is_right)
    # bins of 1/15, upper ends included: 0.05 in the 1st, 0.2 in the 3rd, 0.5 in the 8th, the rest in the 15th
    assert bins.counts.tolist() == [1, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 2]
    assert bins.error == pytest.approx(1 / 6 * 0.05 + 1 / 6 * 0.8 + 2 / 6 * 0.0 + 2 / 6 * (1 - 0.975))


def test_calibration_error_is_torchmetrics(run_dir: Path) -> None:
    predictions = predictions_in(run_dir)
    right_N, top_NT = predictions.predicted_N == predictions.labels_N, predictions.top_NT.astype(np.int64)
    expected = multiclass_calibration_error(
        torch.zeros(360, 10).scatter(1, *map(torch.from_numpy, (top_NT, predictions.probabilities_NT))),
        torch.from_numpy(predictions.labels_N),
        num_classes=len(predictions.classes),
        n_bins=15,
    )
    assert calibration(predictions.confidences_N, right_N).error == pytest.approx(expected.item(), abs=1e-6)


def test_confusion_counts_are_those_of_a_loop(run_dir: Path) -> None:
    predictions = predictions_in(run_dir)
    expected = np.zeros((10, 10), int)
    for label, guess in zip(predictions.labels_N, predictions.predicted_N, strict=True):
        expected[label, guess] += 1
    found = Confusions.of(predictions)
    np.testing.assert_array_equal(found.matrix_KK(), expected)
    np.testing.assert_allclose(found.accuracies_K, 100 * expected.diagonal() / expected.sum(1))
    np.testing.assert_allclose(found.precisions_K, 100 * expected.diagonal() / expected.sum(0))
    wrong = expected - np.diag(expected.diagonal())
    pairs = sorted((-wrong[pair], *pair) for pair in zip(*wrong.nonzero(), strict=True))
    assert list(zip(-found.counts_P, found.true_P, found.predicted_P, strict=True)) == pairs
    assert found.mistakes() == {k: (int(row.argmax()), row.max()) for k, row in enumerate(wrong) if row.any()}
    assert expected.sum() == 360


def test_the_grids_show_mistakes_by_falling_confidence_and_their_own_pixels(run_dir: Path, digits: ImageData) -> None:
    predictions = predictions_in(run_dir)
    guess, sure = predictions.predicted_N, predictions.confidences_N
    wrong = [int(i) for i in range(360) if guess[i] != predictions.labels_N[i]]
    assert predictions.mistakes.tolist() == sorted(wrong, key=lambda i: -sure[i])[:64]
    np.testing.assert_array_equal(predictions.mistake_images, digits.test.images[predictions.mistakes])
    assert (len(set(predictions.samples.tolist())), predictions.samples[-1]) == (64, 359)


def test_mean_gates_are_those_of_a_loop_over_single_images(run_dir: Path, digits: ImageData) -> None:
    trained = load_trained(run_dir, model_name=TINY, device="cpu")
    some = Split(digits.test.images[:30], digits.test.labels[:30].numpy())
    predictions = examine.predict(trained, some)
    assert list(predictions.gates) == [f"layer{stage}.0.se" for stage in (1, 2, 3, 4)]
    block = trained.model.get_submodule("layer3.0.se")
    by_class: dict[int, list[np.ndarray]] = {}
    for image, label in zip(some.images, some.labels.tolist(), strict=True):
        seen: list[torch.Tensor] = []
        hook = block.register_forward_hook(
            lambda _, inputs, output, seen=seen: seen.append(output.sum((2, 3)) / inputs[0].sum((2, 3)))
        )
        trained.logits(torch.tensor(image[None]))
        hook.remove()
        by_class.setdefault(label, []).append(seen[0][0].double().numpy())
    for label, gates in by_class.items():
        np.testing.assert_allclose(predictions.gates["layer3.0.se"][label], np.mean(gates, axis=0), atol=1e-4)
    everything = np.concatenate([np.stack(gates) for gates in by_class.values()])
    mean = everything.mean(0)
    between = sum(len(gates) * np.square(np.mean(gates, axis=0) - mean).sum() for gates in by_class.values())
    assert predictions.gate_shares[2] == pytest.approx(between / np.square(everything - mean).sum(), abs=1e-4)


def test_gates_that_follow_the_class_have_a_share_of_one_and_others_of_none() -> None:
    labels = np.repeat(np.arange(4), 50)
    by_class, alike, constant = GateTally(4), GateTally(4), GateTally(4)
    by_class.add(np.stack([labels / 4, labels / 8], 1), labels)
    alike.add(np.tile(np.linspace(0, 1, 50), 4)[:, None], labels)
    constant.add(np.full((200, 3), 0.7), labels)
    assert by_class.class_share() == pytest.approx(1)
    assert alike.class_share() == pytest.approx(0, abs=1e-12)
    assert constant.class_share() == 0


def test_a_network_without_gates_has_no_such_section(train_here: Train, tmp_path: Path) -> None:
    train_here(tmp_path, "model.name=tests.networks:no_norm", "train.epochs=1")
    with pytest.raises(ConfigError, match=r"say --model tests\.networks:no_norm to run it"):
        main([str(tmp_path), "--device", "cpu"])
    assert main([str(tmp_path), "--device", "cpu", "--model", "tests.networks:no_norm"]) == 0
    assert {path.stem for path in (tmp_path / "report").glob("*.svg")} == FIGURES - {"gates", "gate_shares"}
    assert 'id="gates"' not in (tmp_path / "report" / "report.html").read_text()
    assert not (tmp_path / "tensorboard").exists()


def test_interruptions_are_those_in_starts_jsonl(run_dir: Path) -> None:
    [real] = read_run(run_dir).interruptions
    assert (real.cause, real.step) == (
        "preempted",
        json.loads((run_dir / "starts.jsonl").read_text().split("\n")[1])["resumed_from"],
    )
    afters = [{}, {"state": "running"}, {"state": "failed", "reason": "boom"}, {"state": "finished"}]
    with (run_dir / "starts.jsonl").open("a") as file:
        for step, after in enumerate(afters, start=40):
            file.write(json.dumps({"generation": step, "resumed_from": step, "after": after}) + "\n")
        file.write('{"generation": 99, "resu')  # cut short by a kill
    found = [(i.step, i.cause, i.reason) for i in read_run(run_dir).interruptions[1:]]
    assert found == [(40, "unknown", ""), (41, "killed", ""), (42, "failed", "boom")]
    svg = to_svg(curves(read_run(run_dir))["loss"]).decode()
    for cause in ("preempted", "killed", "failed", "unknown"):
        assert svg.count(f"resumed after: {cause}") == 1


@pytest.mark.slow
def test_two_runs_are_compared_in_the_first_ones_report(run_dir: Path, tmp_path: Path) -> None:
    shutil.rmtree(run_dir / "tensorboard")  # not looked at here
    other = shutil.copytree(run_dir, tmp_path / "other")
    shutil.rmtree(other / "report")
    options = (other / "config.yaml").read_text().replace("label_smoothing: 0.1", "label_smoothing: 0.25")
    (other / "config.yaml").write_text(options)
    assert main([str(run_dir), str(other)]) == 0
    assert {path.stem for path in (run_dir / "report").glob("*.svg")} > {"comparison_loss", "comparison_accuracy"}
    page = (run_dir / "report" / "report.html").read_text()
    assert "run (2)" in page
    assert '<th scope="row">train.label_smoothing</th><td>0.1</td><td>0.25</td>' in page
    assert not (other / "report").exists()


def test_held_out_images_are_not_called_test_images(run_dir: Path) -> None:
    run = read_run(run_dir)
    held = dataclasses.replace(run, options=run.options | {"data.holdout": 100})
    for each, word, other in ((run, "test", "held-out"), (held, "held-out", "test")):
        page = render([each], {}, {}, None, "").decode()
        assert f"Best {word} accuracy" in page
        for text in (f"Best {other} accuracy", f"Last epoch, {other}"):
            assert text not in page
        drawings = draw([each, each], None)
        for name in ("loss", "accuracy"):
            svg = to_svg(drawings[name].figure).decode()  # text is drawn, and in a comment
            assert f"<!-- {word} -->" in svg
            assert f"<!-- {other}" not in svg
            assert f"{word} " in drawings[name].alt
            assert f"<!-- {word} " in to_svg(drawings[f"comparison_{name}"].figure).decode()
            assert f": {word} " in drawings[f"comparison_{name}"].alt
    assert images([run, held]) == "test or held-out"


def test_names_of_runs_are_all_different() -> None:
    runs = [Run(name, Path(), {}, [], [], [], {}) for name in ("a", "a (2)", "a", "b", "a")]
    assert names(runs) == ["a", "a (2)", "a (3)", "b", "a (4)"]


def test_what_comes_from_files_is_escaped_and_the_jobs_environment_left_out(run_dir: Path) -> None:
    hostile = dataclasses.replace(predictions_in(run_dir), classes=HOSTILE)
    lines = (run_dir / "starts.jsonl").read_text().splitlines()
    start = json.loads(lines[-1])
    start["argv"] += ["<i>", "slurm.environment.TOKEN=secret", "slurm={environment: {TOKEN: secret}}"]
    (run_dir / "starts.jsonl").write_text("\n".join([lines[0], json.dumps(start)]))
    with (run_dir / "config.yaml").open("a") as file:
        file.write("x:\n  y: <u>\n")
    runs = [read_run(run_dir)]
    drawings = draw(runs, hostile)
    page = render(runs, drawings, dict.fromkeys(drawings, b""), hostile, "").decode()
    for raw in ("<script", 'onerror="', "<b>", "<i>", "<u>", "secret"):
        assert raw not in page
    for escaped in ("&lt;script&gt;alert(1)", "{{ 7 * 7 }}", "猫", "slurm.environment.TOKEN=... slurm=..."):
        assert escaped in page


@pytest.fixture
def made_up() -> Predictions:
    """Of 1,000 classes, 2 images of each, a third of them wrong; a block of 600 gates."""
    labels = np.arange(2000) % 1000
    probabilities = np.full((2000, 1000), 1e-4, np.float32)
    probabilities[np.arange(2000), np.where(labels % 3, labels, labels - 1)] = 0.9
    names = tuple(f"class {number}" for number in range(1000))
    some, pixels = np.arange(0, 30, 3), np.zeros((10, 8, 8, 3), np.uint8)
    files = tuple(f"test/class {number}/<{number}>.png" for number in some)
    top, gates = most_probable(probabilities), {"layer.se": np.random.default_rng(0).random((1000, 600))}
    seen = (names, *top, labels, some, pixels, some, pixels, gates, np.zeros(1), "raw", files)
    return Predictions("0", "a.pt", False, *seen)


def test_a_thousand_classes_show_the_worst_twenty_and_fold_the_rest(run_dir: Path, made_up: Predictions) -> None:
    runs = [read_run(run_dir)]
    page = render(runs, {}, {}, made_up, "").decode()
    section = page[page.index('id="classes"') : page.index('id="calibration"')]
    open_part, folded = section.split("<details>")
    folded, pairs = folded.split("</details>")
    assert re.findall(r'<th scope="row">(.*?)</th>', open_part) == [f"class {number}" for number in range(0, 60, 3)]
    assert folded.count('<th scope="row">') == 1000
    named = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>', pairs)
    assert named[:2] == [("class 0", "2", "100.00", "class 999"), ("class 3", "2", "100.00", "class 2")]
    assert len(named) == 20
    drawings = draw(runs, made_up)
    assert drawings["classes"].figure.get_figheight() < 8  # inches
    assert "confusion" not in drawings
    assert drawings["gates"].figure.axes[1].images[0].get_size() == (50, 512)
    few = render(runs, {}, {}, predictions_in(run_dir), "").decode()
    assert "<details>" not in few[few.index('id="classes"') : few.index('id="calibration"')]
    assert ("<script" in page, "<script" in few, "script-src" in few) == (True, False, False)


@pytest.mark.slow
@needs_browser
def test_among_a_thousand_classes_one_is_found_by_its_name(run_dir: Path, made_up: Predictions, tmp_path: Path) -> None:
    runs = [read_run(run_dir)]
    drawings = draw(runs, made_up)
    svgs = {name: to_svg(drawing.figure) for name, drawing in drawings.items()}
    (tmp_path / "page.html").write_bytes(render(runs, drawings, svgs, made_up, ""))
    rows_seen = "[...document.querySelectorAll('#classes details tbody th')].filter(cell => cell.checkVisibility())"
    shown = f"return {rows_seen}.map(cell => cell.innerText)"
    with browser(tmp_path / "profile") as driver:
        for width in (1280, 390):
            open_page(driver, tmp_path / "page.html", width)
            assert driver.execute_script(shown) == []
            driver.execute_script("document.querySelector('#classes details').open = true")
            assert len(driver.execute_script(shown)) == 1000
            for text, found in (
                ("CLASS 99", [99, *range(990, 1000)]),
                ("s 99", [99]),
                ("none", []),
                ("class 7 ", [7, *range(70, 80)]),
            ):
                driver.find_element("id", "search").clear()
                driver.find_element("id", "search").send_keys(text)
                numbers = [number for number in range(1000) if text.strip().lower() in f"class {number}"]
                assert numbers[: len(found)] == found
                assert driver.execute_script(shown) == [f"class {number}" for number in numbers]
                assert driver.find_element("css selector", "output").text == f"{len(numbers)} of 1000"


def test_the_most_probable_classes_are_those_of_a_stable_sort() -> None:
    for count in (3, 5, 40):
        probabilities = np.random.default_rng(count).integers(0, 8, (200, count)).astype(np.float32) / 8
        top, values = most_probable(probabilities)
        expected = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
        np.testing.assert_array_equal(top, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(probabilities, expected, 1))


def test_a_class_without_images_is_not_called_the_worst(made_up: Predictions) -> None:
    some = made_up.labels_N < 990
    fewer = {name: getattr(made_up, name)[some] for name in ("labels_N", "top_NT", "probabilities_NT")}
    found = seen(dataclasses.replace(made_up, **fewer))
    assert found["classes"].rows[990] == ["class 990", "0", "\N{EN DASH}", "\N{EN DASH}", "\N{EN DASH}"]
    assert [row[0] for row in found["worst"].rows] == [f"class {number}" for number in range(0, 60, 3)]
    assert max(int(row[1]) for row in found["worst"].rows) == 2


def test_mistakes_are_named_by_their_files_and_the_network_by_its_weights(
    run_dir: Path, made_up: Predictions, tmp_path: Path
) -> None:
    made_up.save(tmp_path / "new.npz")
    again = Predictions.load(tmp_path / "new.npz")
    assert again is not None
    assert (again.mistake_files, again.weights) == (made_up.mistake_files, "raw")
    page = render([read_run(run_dir)], {}, {}, again, "").decode()
    assert "</code>, raw weights, in fp32" in page
    assert "The files of these 10 mistakes" in page
    assert '<th scope="row">2</th><td>test/class 3/&lt;3&gt;.png</td><td>class 2</td><td>90.0</td>' in page
    assert predictions_in(run_dir).mistake_files == ()  # digits come from no files
    with np.load(tmp_path / "new.npz") as file:  # as an older version wrote it
        newer = ("mistake_files", "weights", "top_NT", "probabilities_NT")
        older = {name: file[name] for name in file.files if name not in newer}
    probabilities = np.zeros((2000, 1000), np.float32)
    np.put_along_axis(probabilities, made_up.top_NT, made_up.probabilities_NT, 1)
    np.savez(tmp_path / "old.npz", probabilities_NK=probabilities, **older)
    old = Predictions.load(tmp_path / "old.npz")
    assert old is not None
    np.testing.assert_array_equal(old.top_NT, made_up.top_NT)
    page = render([read_run(run_dir)], {}, {}, old, "").decode()
    assert "</code> in fp32" in page
    assert "The files of these" not in page


def test_letters_that_the_font_has_not_are_left_to_the_browser_as_text() -> None:
    def drawn(*classes: str) -> str:
        return to_svg(class_accuracy(np.array([50.0, 25.0]), classes, 37.5)).decode()

    assert ">猫<" in re.sub(r"\N{NO-BREAK SPACE}", "", drawn("猫", "dog"))
    assert drawn("猫", "dog") == drawn("猫", "dog")
    assert "<text" not in drawn("chat", "Hündin")  # drawn, so the same in every browser
    assert "<b>" not in drawn("猫<b>", "dog")


@pytest.mark.parametrize(
    ("name", "length", "shown"),
    [
        ("short", 5, "short"),
        ("a long name 12", 9, "a lo…e 12"),
        ("日本語の名前", 12, "日本語の名前"),
        ("日本語の長い名前", 12, "日本語…名前"),
        ("a\nb\x01", 4, "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_label_that_is_too_long_loses_its_middle(name: str, length: int, shown: str) -> None:
    assert figures.label(name, length) == shown


@pytest.mark.parametrize("path", ["nothing", "."])
def test_what_is_no_run_directory_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        main([str(tmp_path / path)])


def test_a_run_directory_that_cannot_be_written_is_named_at_once_with_a_remedy(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "report")
    (run_dir / "report").symlink_to("/proc")  # where root cannot write either
    with pytest.raises(ConfigError, match=r"/copy/report cannot be written \(.+\); report on a copy of the run dir"):
        main([str(run_dir)])


def test_without_the_packages_that_draw_one_line_says_what_to_install(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("drawings", "figures", "curves", "page", "seen"):
        monkeypatch.delitem(sys.modules, f"senet.report.{name}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib is not installed; run \./launch\.sh setup report"):
        main([str(run_dir)])


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_the_page_without_complaint_on_a_desktop_and_on_a_phone(run_dir: Path, tmp_path: Path) -> None:
    hostile = dataclasses.replace(predictions_in(run_dir), classes=HOSTILE)
    hostile.save(run_dir / "report" / "predictions.npz")
    shutil.rmtree(run_dir / "tensorboard")  # not looked at here
    others = [shutil.copytree(run_dir, tmp_path / f"a run with a long name {number}") for number in range(6)]
    for number, folder in enumerate(others):
        options = (folder / "config.yaml").read_text()
        for key, value in (("run_dir", f"runs/{folder.name}"), ("  lr", number / 8)):
            options = re.sub(rf"^{key}: .*", f"{key}: {value}", options, flags=re.MULTILINE)
        (folder / "config.yaml").write_text(options)
    page = write_report([run_dir, *others])
    with browser(tmp_path / "profile") as driver:
        for width in (1280, 390):
            assert open_page(driver, page, width) == len(FIGURES) + 2
            assert driver.execute_script("return document.querySelectorAll('svg:not([aria-label])').length") == 0
            assert driver.execute_script("return document.querySelectorAll('script, b, i, u').length") == 0
            hints = "[...document.querySelectorAll('.hint')].map(hint => hint.offsetHeight > 0)"
            assert driver.execute_script(f"return {hints}") == [width < 500] * 3  # two grids and the gates
            tables = "[...document.querySelectorAll('.wrap .table')].map(t => t.scrollWidth <= t.clientWidth)"
            assert len(fitting := driver.execute_script(f"return {tables}")) == 3
            assert all(fitting) or width < 500  # the options of seven runs side by side, classes, starts
