"""A training is killed while its views are written, an upload is cut: in the end each has each step once."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from senet import sync
from senet.config.load import to_yaml
from senet.distributed.preemption import StopFlag
from senet.rundir.files import write_json
from senet.training.run import run
from senet.training.writer import Writer
from senet.views.csv_file import CsvFile
from senet.views.identity import identify
from senet.views.mlflow_run import MlflowRun
from senet.views.services import catch_up, make_view
from senet.views.wandb_run import WandbRun
from tests.harness import (
    differing,
    fork_server,
    free_port,
    payload,
    started,
    tiny,
    tiny_config,
    train_command,
    wait_until,
    without_clock,
)
from tests.shown import in_csv, in_metrics, in_mlflow, in_wandb
from tests.soak import SOAK
from tests.wandb_server import wandb_server

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
VIEWS = {"csv": CsvFile, "mlflow": MlflowRun, "wandb": WandbRun}
TO = "log.to=[tensorboard,wandb,mlflow,csv]"
PACED = ("train.epochs=8", "checkpoint.every_steps=7", "log.every_steps=1", "model.name=tests.faults.networks:paced")
PLACES = [(view, place) for view in VIEWS for place in ("before", "within", "after")]
"""Of a call that sends; within: a part of the steps is there."""


def _train(run_dir: str, root: str, view: str, place: str, calls: int, environment: dict[str, str]) -> None:
    """Kills itself in the call of this number that sends to a view; ``place`` "": does not."""
    _become(environment)
    import mlflow  # noqa: F401 # before the training: the views are written in the middle of it
    import wandb  # noqa: F401

    if place:
        _kill_in(VIEWS[view], place, calls)
    options = tiny(*PACED, TO, f"data.root={root}", f"run_dir={run_dir}")
    run(tiny_config(*options[1:]), options, StopFlag())
    os._exit(0)


def _become(environment: dict[str, str]) -> None:
    """Somebody without other keys and settings than these."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    os.environ |= environment


def _kill_in(view: Any, place: str, calls: int) -> None:
    original, left = view.send, [calls]

    def send(self: Any, points: Any) -> None:
        left[0] -= bool(points)
        if not points or left[0]:
            return original(self, points)
        if place != "before":
            original(self, points if place == "after" else points[: (len(points) + 1) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    view.send = send


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The home of somebody who has never used these services."""
    own = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path / "config")}
    return own | {"WANDB_CACHE_DIR": str(tmp_path / "cache")}


def test_after_four_or_ten_kills_each_view_has_each_step_once(
    data_root: Path, tmp_path: Path, environment: dict[str, str], undisturbed: Callable[..., dict[str, Any]]
) -> None:
    draw = random.Random(17)
    run_dir = tmp_path / "run"
    places = [*(PLACES if SOAK else [(view, "within") for view in VIEWS]), ("csv", "")]
    draw.shuffle(places)
    for view, place in places:
        process = fork_server().Process(
            target=_train, args=(str(run_dir), str(data_root), view, place, draw.randint(1, 2), environment)
        )
        process.start()
        if not place:  # at any moment
            time.sleep(draw.uniform(3, 9))
            process.kill()
        process.join(400)
        assert process.exitcode == -signal.SIGKILL, f"{view} {place}"
    last = fork_server().Process(target=_train, args=(str(run_dir), str(data_root), "csv", "", 0, environment))
    last.start()
    last.join(400)
    assert last.exitcode == 0
    expected = in_metrics(run_dir)
    assert list(expected) == [*range(1, 177)]
    assert in_csv(run_dir) == in_mlflow(run_dir / "mlflow.db") == in_wandb(run_dir) == expected
    reference = undisturbed(0, *PACED, "log.to=[]")
    assert differing(reference, without_clock(payload(run_dir))) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address and the database of a tracking server of MLflow."""
    database, port = tmp_path / "server.db", free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(tmp_path / "artifacts")]

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return bool(urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
        except OSError:
            return False

    log = tmp_path / "server.log"
    with started(command, log, MLFLOW_DISABLE_TELEMETRY="true") as process:
        wait_until(answers, 400)
        yield f"http://127.0.0.1:{port}", database


def _long_run(run_dir: Path, view: str) -> Path:
    """A finished run with more steps than one request holds."""
    run_dir.mkdir()
    written = Writer(run_dir, resumed_step=0, epochs_done=0, to=())
    for step in range(1, 2001):
        written.write("train", step, train_loss=1 / step, lr=0.1, images_per_s=100.0 + step, train_s=0.5 * step)
    written.close()
    write_json(run_dir / "status.json", {"state": "finished", "step": 2000})
    write_json(run_dir / "owner.json", {})
    (run_dir / "config.yaml").write_text(to_yaml(tiny_config(f"log.to=[{view}]")))
    return run_dir


def _sync(run_dir: str, requests: int, environment: dict[str, str]) -> None:
    """Kills itself after so many requests with steps to MLflow."""
    _become(environment)
    from mlflow.tracking import MlflowClient

    original, left = MlflowClient.log_batch, [requests]

    def log_batch(self: Any, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        left[0] -= "params" not in more
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    MlflowClient.log_batch = log_batch
    os._exit(sync.main([run_dir]))


def _write_offline(run_dir: str, through: int, environment: dict[str, str]) -> None:
    """As a start of a training that reaches this step."""
    _become(environment)
    folder = Path(run_dir)
    view = make_view("wandb", folder, identify(folder, trains=True), trains=True)
    catch_up(view, folder, through)
    view.close(finished=False)
    os._exit(0)


def _in_a_process(function: Callable[..., None], *args: Any) -> int | None:
    process = fork_server().Process(target=function, args=args)
    process.start()
    process.join(240)
    process.kill()
    return process.exitcode


def test_an_upload_to_mlflow_that_is_cut_is_completed_by_the_same_command(
    tmp_path: Path, server: tuple[str, Path], environment: dict[str, str]
) -> None:
    address, database = server
    run_dir = _long_run(tmp_path / "run", "mlflow")
    there = environment | {"MLFLOW_TRACKING_URI": address}
    for requests in (1, 3):
        assert _in_a_process(_sync, str(run_dir), requests, there) == -signal.SIGKILL
        assert 0 < len(in_mlflow(database)) < 2000
    for _ in range(2):
        assert _in_a_process(_sync, str(run_dir), 0, there) == 0
        assert in_mlflow(database) == in_metrics(run_dir)


def _upload(run_dir: str, lines: int, environment: dict[str, str]) -> None:
    """Kills itself when so many steps have been given to W&B; 0: does not."""
    _become(environment)
    if lines:
        original = WandbRun.send

        def send(self: Any, points: Any) -> None:
            original(self, points[:lines])
            time.sleep(2)  # wandb sends in a process of its own
            os.kill(os.getpid(), signal.SIGKILL)

        WandbRun.send = send  # type: ignore[method-assign]
    os._exit(sync.main([run_dir]))


def test_an_upload_to_wandb_that_is_cut_is_completed_by_the_same_command(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    run_dir = _long_run(tmp_path / "run", "wandb")
    with wandb_server() as server:
        there = environment | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
        for lines in (300, 500):
            assert _in_a_process(_upload, str(run_dir), lines, there) == -signal.SIGKILL
        for _ in range(2):
            assert _in_a_process(_upload, str(run_dir), 0, there) == 0
            assert server.history() == in_metrics(run_dir)


def test_what_several_starts_have_written_offline_is_uploaded_by_wandb_itself_and_nothing_is_left_to_send(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    run_dir = _long_run(tmp_path / "run", "wandb")
    for through in (700, 2000):
        assert _in_a_process(_write_offline, str(run_dir), through, environment) == 0
    [folder] = (run_dir / "wandb").glob("offline-run-*")
    with wandb_server() as server:
        there = environment | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
        there |= {"WANDB_DIR": str(tmp_path)}  # for what wandb's command writes
        with started([sys.executable, "-m", "wandb", "sync", str(folder)], tmp_path / "log", **there) as process:
            assert process.wait(240) == 0, (tmp_path / "log").read_text()
        assert server.history() == in_metrics(run_dir)
        assert _in_a_process(_upload, str(run_dir), 0, there) == 0
        assert server.history() == in_metrics(run_dir)


def test_a_training_sends_to_the_servers_and_no_key_is_in_a_file_of_the_run_or_in_what_it_prints(
    data_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    keys = {
        "WANDB_API_KEY": "b5" * 20,
        "MLFLOW_TRACKING_PASSWORD": "hush-hush-1",
        "MLFLOW_TRACKING_TOKEN": "hush-hush-2",
    }
    nobody = f"http://me:hush-hush-3@127.0.0.1:{free_port()}"
    with wandb_server() as server:
        there = {
            "WANDB_BASE_URL": server.address,
            "MLFLOW_TRACKING_URI": nobody,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        options = tiny(f"data.root={data_root}", f"run_dir={tmp_path}/run", "log.to=[wandb,mlflow,csv]")
        with started(train_command(0, options), tmp_path / "log", **environment, **keys, **there) as process:
            assert process.wait(240) == 0, (tmp_path / "log").read_text()
        assert server.history() == in_csv(tmp_path / "run") == in_metrics(tmp_path / "run")
    printed = (tmp_path / "log").read_text()
    assert printed.count("WARNING: mlflow: ") == 1, printed
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert not [key for key in (*keys.values(), "hush-hush-3") if key.encode() in path.read_bytes()], path
