"""metrics.jsonl elsewhere: a CSV file, Weights & Biases offline, MLflow's SQLite; each step once."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from senet import sync
from senet.config.load import load_config, to_yaml
from senet.errors import ConfigError
from senet.extras import must_be_installed
from senet.rundir.files import write_json
from senet.rundir.history import read_options
from senet.rundir.lease import Lease
from senet.training import record
from senet.training.writer import Writer
from senet.views import services
from senet.views.csv_file import CsvFile
from senet.views.identity import Identity, identify
from senet.views.mlflow_run import MlflowRun
from senet.views.points import Point, complete_through, points
from senet.views.services import catch_up, in_words, make_view
from senet.views.wandb_run import WandbRun
from tests.conftest import Train
from tests.harness import StopAt, differing, payload, tiny, wait_until, without_clock
from tests.shown import Shown, in_csv, in_metrics, in_mlflow, in_wandb

# of SQLAlchemy 2.1 to MLflow, of which the user learns nothing
pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")
ALL = ("csv", "mlflow", "wandb")
SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's key, server or settings; mlflow and alembic set levels and handlers of logging."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


def train_row(step: int, **more: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "train_loss": 1 / step, "train_s": 0.5 * step, **more}


def epoch_row(step: int) -> dict[str, Any]:
    return {"kind": "epoch", "step": step, "epoch": step // 4, "test_top1": 10.0 * step, "weights": "raw", "train_s": 1}


def shown(view: str, run_dir: Path) -> Shown:
    if view == "mlflow":
        return in_mlflow(run_dir / "mlflow.db")
    return in_csv(run_dir) if view == "csv" else in_wandb(run_dir)


def a_run(run_dir: Path, last: int = 12) -> Path:
    """Its rows, one for each step, epochs of four steps."""
    run_dir.mkdir()
    written = Writer(run_dir, resumed_step=0, epochs_done=0, to=())
    for step in range(1, last + 1):
        for row in (train_row(step), *([epoch_row(step)] if step % 4 == 0 else [])):
            written.write(**row)
    written.close()
    return run_dir


# the rows of a step


def test_a_step_is_one_point_with_the_numbers_of_its_rows_in_order() -> None:
    rows = [train_row(4), epoch_row(4), train_row(2), train_row(2), {"note": "by hand"}, {"kind": "epoch", "step": "9"}]
    assert points(rows, after=0, through=4) == [
        Point(2, 1.0, {"train/train_loss": 0.5, "train/train_s": 1.0}),
        Point(
            4,
            1,
            {
                **{"train/train_loss": 0.25, "train/train_s": 2.0},
                **{"epoch/epoch": 1, "epoch/test_top1": 40.0, "epoch/train_s": 1},
            },
        ),
    ]
    assert [point.step for point in points(rows, after=2, through=9)] == [4]
    assert points(rows, after=0, through=1) == []


@pytest.mark.parametrize(
    ("step", "epochs_done", "through"),
    [(0, 0, 0), (3, 0, 3), (4, 1, 4), (5, 1, 5), (4, 0, 3), (8, 1, 7), (8, 2, 8)],
)
def test_a_step_whose_evaluation_is_still_to_come_is_not_complete(step: int, epochs_done: int, through: int) -> None:
    assert complete_through({"step": step, "epochs_done": epochs_done, "steps_per_epoch": 4}) == through


# one id


def test_a_run_keeps_its_id_where_it_is_moved_or_mounted_elsewhere_and_a_copy_that_trains_is_another(
    tmp_path: Path,
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    number = identify(first, trains=True).id
    assert identify(first, trains=True).id == number
    moved = first.rename(tmp_path / "moved")
    assert identify(moved, trains=True).id == number
    copy = shutil.copytree(moved, tmp_path / "copy")
    assert identify(copy, trains=False).id == number  # to be sent from there
    other = identify(copy, trains=True).id
    assert other != number
    assert identify(copy, trains=False).id == other
    assert identify(moved, trains=True).id == number


def test_all_views_of_a_run_have_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def note(*_: object, identity: Identity, **__: object) -> Fails:
        given.append(identity.id)
        return Fails()

    monkeypatch.setattr("senet.views.services.make_view", note)
    written = Writer(tmp_path, resumed_step=0, epochs_done=0, to=ALL)
    written.covered(0)
    written.end_views(finished=False, within_s=60)
    written.close()
    assert given == [identify(tmp_path, trains=True).id] * 3


def test_a_cell_of_a_sweep_has_its_name_and_that_of_the_sweep(tmp_path: Path) -> None:
    cell = tmp_path / "rates" / "lr=0.1_seed=0"
    cell.mkdir(parents=True)
    assert (identify(cell, trains=True).name, identify(cell, trains=True).group) == ("lr=0.1_seed=0", "")
    write_json(tmp_path / "rates" / "sweep.json", {})
    assert (identify(cell, trains=True).name, identify(cell, trains=True).group) == ("lr=0.1_seed=0", "rates")


def test_options_are_shown_without_those_that_may_hold_what_only_their_user_should_read(tmp_path: Path) -> None:
    options = ["notify=mail me", "slurm.environment.A=b", "optim.lr=0.25"]
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(tiny(*options))))
    found = identify(tmp_path, trains=True).options
    assert found["optim.lr"] == 0.25
    assert not [key for key in found if key == "notify" or key.startswith("slurm.")]


# what a view has


@pytest.mark.parametrize("name", ALL)
def test_each_start_sends_what_is_missing_and_a_killed_one_leaves_no_step_twice(name: str, tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "run")
    for through in (3, 3, 8, 12, 12):
        view = make_view(name, run_dir, identify(run_dir, trains=True), trains=True)
        catch_up(view, run_dir, through)
        if through != 8 or name == "wandb":  # else as if it were killed; wandb's own process would know it
            view.close(finished=through == 12)
    assert shown(name, run_dir) == in_metrics(run_dir)


@pytest.mark.parametrize("name", ALL)
def test_what_comes_after_the_last_step_is_added(name: str, tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "run")
    view = make_view(name, run_dir, identify(run_dir, trains=True), trains=True)
    catch_up(view, run_dir, 2)
    view.send(points([train_row(3), epoch_row(3)], after=2, through=3))
    view.send([])
    view.send(points([train_row(5, grad_norm=2.0)], after=3, through=9))
    view.close(finished=False)
    found = shown(name, run_dir)
    assert list(found) == [1, 2, 3, 5]
    assert found[5] == {"train/train_loss": 0.2, "train/train_s": 2.5, "train/grad_norm": 2.0}
    assert found[3]["epoch/test_top1"] == 30


def test_a_file_that_was_cut_in_a_line_is_whole_after_the_next_start(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "run")
    catch_up(CsvFile(run_dir), run_dir, 9)
    path = run_dir / "metrics.csv"
    path.write_text(path.read_text()[:-7])
    catch_up(CsvFile(run_dir), run_dir, 12)
    assert in_csv(run_dir) == in_metrics(run_dir)


def test_mlflow_has_one_run_with_its_options_name_and_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "sweep.json", {})
    run_dir = a_run(tmp_path / "run")
    (run_dir / "config.yaml").write_text(to_yaml(load_config(tiny("optim.lr=0.25"))))
    for finished in (False, True):
        view = MlflowRun(run_dir, identify(run_dir, trains=True))
        catch_up(view, run_dir, 12)
        view.close(finished=finished)
    client = MlflowClient(view.address)
    [run] = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.data.params["optim.lr"], run.info.status) == ("0.25", "FINISHED")
    assert run.info.run_name == f"{tmp_path.name}/run"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "sweep.json"}  # nothing in the working directory


def test_wandb_offline_has_one_folder_with_options_name_and_group(tmp_path: Path) -> None:
    write_json(tmp_path / "sweep.json", {})
    run_dir = a_run(tmp_path / "run")
    (run_dir / "config.yaml").write_text(to_yaml(load_config(tiny("optim.lr=0.25"))))
    for _ in range(2):
        view = WandbRun(run_dir, identify(run_dir, trains=True), trains=True)
        catch_up(view, run_dir, 12)
        run = view._run
        assert (run.name, run.group, run.config["optim.lr"], run.offline) == ("run", tmp_path.name, 0.25, True)
        view.close(finished=True)
        time.sleep(1.1)  # folders are told apart by the second
    [folder] = (run_dir / "wandb").glob("*run-*")
    assert folder.name.startswith("offline-run-")


@pytest.mark.parametrize(
    ("given", "key", "mode"),
    [
        ("online", "", "offline"),
        ("online", SECRET, "online"),
        ("offline", SECRET, "offline"),  # a node without network
        ("dryrun", SECRET, "offline"),
        ("disabled", "", "disabled"),
    ],
)
def test_wandb_is_online_with_a_key_unless_its_user_says_other(given: str, key: str, mode: str, tmp_path: Path) -> None:
    settings = SimpleNamespace(mode=given, api_key=key, base_url="https://api.wandb.ai")
    identity = identify(tmp_path, trains=True)
    assert WandbRun(tmp_path, identity, trains=True)._mode(settings) == mode
    assert WandbRun(tmp_path, identity, trains=False)._mode(settings) == "online"


# while a network is trained


class Fails:
    """A view that raises at certain calls."""

    def __init__(self, *at: int) -> None:
        self.at, self.calls, self.steps, self.opened = at, 0, list[int](), 0

    def open(self) -> int:
        self.opened += 1
        return self.steps[-1] if self.steps else -1

    def send(self, some: Sequence[Point]) -> None:
        self.calls += 1
        if self.calls in self.at:
            self.steps += [point.step for point in some[:1]]  # a part of it was there
            raise OSError(28, f"No space left on https://user:{SECRET}@host/")
        self.steps += [point.step for point in some]

    def close(self, *, finished: bool) -> None:
        self.finished = finished


@pytest.fixture
def writer_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Writer]:
    def make(view: object) -> Writer:
        monkeypatch.setattr("senet.views.services.make_view", lambda *_, **__: view)
        return Writer(tmp_path, resumed_step=0, epochs_done=0, to=["csv"])

    return make


def test_after_an_error_a_view_is_asked_what_it_has_and_gets_the_rest_with_one_warning(
    writer_to: Callable[[object], Writer], caplog: pytest.LogCaptureFixture
) -> None:
    view = Fails(2, 3)
    written = writer_to(view)
    for step in range(1, 13):
        written.write(**train_row(step))
        if step % 3 == 0:
            written.sync()
            written.covered(step)
    written.end_views(finished=True, within_s=60)
    written.close()
    assert view.steps == [*range(1, 13)]
    assert (view.opened, view.finished) == (3, True)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("csv: OSError: [Errno 28] No space left on https://***@host/; ")


def test_at_the_end_what_could_not_be_sent_is_tried_once_more(writer_to: Callable[[object], Writer]) -> None:
    view = Fails(1)
    written = writer_to(view)
    for step in (1, 2, 3):
        written.write(**train_row(step))
    written.sync()
    written.covered(3)
    written.end_views(finished=False, within_s=60)
    written.close()
    assert (view.steps, view.finished) == ([1, 2, 3], False)


def test_no_row_is_sent_before_a_checkpoint_covers_it(writer_to: Callable[[object], Writer]) -> None:
    view = Fails()
    written = writer_to(view)
    for step in (1, 2, 3):
        written.write(**train_row(step))
    written.covered(2)
    written.end_views(finished=False, within_s=60)
    written.close()
    assert view.steps == [1, 2]


def test_a_service_that_does_not_answer_delays_no_row_and_the_end_not_for_long(
    writer_to: Callable[[object], Writer], caplog: pytest.LogCaptureFixture
) -> None:
    goes_on = threading.Event()

    class Hangs(Fails):
        def open(self) -> int:
            goes_on.wait(60)
            return -1

    written = writer_to(Hangs())
    began = time.monotonic()
    for step in range(100):
        written.write(**train_row(step + 1))
        written.sync()
        written.covered(step)
    caplog.set_level(logging.INFO)
    written.end_views(finished=True, within_s=0.2)
    assert "csv: the end of the run waits for it, 0 s at the most" in caplog.text
    written.close()
    assert time.monotonic() - began < 55
    assert "csv: not all was sent when the time for it was over" in caplog.text
    goes_on.set()


@pytest.mark.slow
def test_a_training_has_the_same_bits_with_all_views_and_without_and_each_shows_all(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_STOP_S", 120.0)  # else a view of the first start still writes while the second runs
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    train_here(alone, "log.to=[]")
    train_here(watched, "log.to=[tensorboard,wandb,mlflow,csv]", stop=StopAt(15))
    train_here(watched, "log.to=[tensorboard,wandb,mlflow,csv]")
    assert differing(*(without_clock(payload(run_dir)) for run_dir in (alone, watched))) == []
    for name in ALL:
        assert shown(name, watched) == in_metrics(watched)
    assert not {"wandb", "mlflow.db", "metrics.csv", "views.json"} & {path.name for path in alone.iterdir()}


# what is refused, and what is kept secret


def test_the_option_of_earlier_versions_is_refused_with_the_new_one_and_taken_from_a_file_of_a_run(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"^log.tensorboard is now log.to, a list; write log.to=\[\]$"):
        load_config(tiny("log.tensorboard=false"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("log: {tensorboard: true}")
    with pytest.raises(ConfigError, match=r"recipe.yaml: log.tensorboard is now .* write log.to=\[tensorboard\]$"):
        load_config([str(recipe)])
    whole = to_yaml(load_config(tiny("log.to=[csv]")))
    for text, views in (("true", ("tensorboard",)), ("false", ())):
        recipe.write_text(whole.replace("  to:\n  - csv\n", f"  tensorboard: {text}\n"))
        assert load_config([str(recipe)]).log.to == views
        assert read_options(recipe)["log.to"] == [*views]  # as compare and the report read it
        assert "log.tensorboard" not in read_options(recipe)


def test_a_key_in_the_environment_of_a_job_is_refused_since_that_is_written_into_files() -> None:
    with pytest.raises(ConfigError, match=r"slurm.environment.WANDB_API_KEY would be written .* export WANDB_API_KEY"):
        load_config(tiny(f"slurm.environment.WANDB_API_KEY={SECRET}"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_view_whose_library_is_missing_is_refused_before_anything_is_trained(
    name: str, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senet.extras.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"^{name} is not installed; run ./launch.sh setup {name}$"):
        train_here(tmp_path / "run", f"log.to=[{name}]")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_has_the_name_of_a_library_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notlib").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="notlib is not installed"):
        must_be_installed("notlib", "wandb")


def test_a_run_that_sends_to_wandb_itself_is_left_alone_and_one_that_has_ended_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(tiny("log.to=[wandb]"))))
    with Lease.acquire(tmp_path):
        assert not sync.send(tmp_path, "wandb")
        assert "the training sends its steps itself" in capsys.readouterr().err
        (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
        assert not sync.sends_itself(tmp_path, "wandb")  # into a folder
    assert not sync.sends_itself(tmp_path, "wandb")


def test_sync_without_a_server_or_a_service_is_refused(tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_text("{}")
    for options, why in (("log.to=[mlflow]", "MLFLOW_TRACKING_URI is not set"), ("log.to=[csv]", "--to wandb$")):
        (tmp_path / "config.yaml").write_text(to_yaml(load_config(tiny(options))))
        with pytest.raises(ConfigError, match=why):
            sync.main([str(tmp_path)])


def test_sync_sends_a_run_once_leaves_its_copies_out_and_does_without_a_server_that_nobody_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, copy = tmp_path / "runs/views", tmp_path / "runs/a copy"
    run.mkdir(parents=True)
    (run / "owner.json").write_text("{}")
    (run / "config.yaml").write_text(to_yaml(load_config(tiny("log.to=[wandb,mlflow]"))))
    identify(run, trains=True)
    shutil.copytree(run, copy)
    sent: list[tuple[Path, str]] = []
    monkeypatch.setattr(sync, "send", lambda run, name: not sent.append((run, name)))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(
        ConfigError, match=r"^W&B has no key for https://.*; export WANDB_API_KEY=..., or run wandb login$"
    ):
        sync.main([str(tmp_path / "runs")])
    monkeypatch.setattr(sync, "check_key", lambda: None)
    assert sync.main([str(tmp_path / "runs")]) == 0
    assert sent == [(run, "wandb")]
    said = capsys.readouterr().err
    assert f"{copy}: left out, since it is a copy of {run}\n" in said
    assert "not to mlflow: MLFLOW_TRACKING_URI is not set" in said
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI is not set"):
        sync.main([str(run), "--to", "mlflow"])
    assert sync.main([str(copy)]) == 0  # from another machine, say
    assert sent[1:] == [(copy, "wandb")]


def test_sync_says_what_it_waits_for_where_a_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(Fails):
        def open(self) -> int:
            wait_until(lambda: not any(isinstance(each, threading.Timer) for each in threading.enumerate()))
            return -1

    write_json(tmp_path / "status.json", {"state": "finished", "step": 3})
    monkeypatch.setattr(sync, "make_view", lambda *_args, **_more: Slow())
    monkeypatch.setattr(sync, "_QUIET_S", 0.1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@host:5000")
    assert sync.send(tmp_path, "mlflow")
    wait = f"{tmp_path}: mlflow: the server http://***@host:5000 has not taken all yet; Ctrl-C loses nothing\n"
    assert capsys.readouterr().err == wait
    monkeypatch.setattr(sync, "make_view", lambda *_args, **_more: Fails())
    monkeypatch.setattr(sync, "_QUIET_S", 60.0)
    assert sync.send(tmp_path, "mlflow")
    assert capsys.readouterr().err == ""


def test_a_library_is_imported_by_no_check_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", pytest.fail)
    services.check_installed(ALL)


def test_no_key_stands_in_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    error = RuntimeError(f"GET http://me:{SECRET[:7]}@host/api\nwith {SECRET} failed")
    assert in_words(error) == "RuntimeError: GET http://***@host/api with *** failed"
