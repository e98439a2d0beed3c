"""A run of MLflow: by its tracking server, or in a file of SQLite."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from senet.errors import ConfigError
from senet.extras import library
from senet.views.identity import Identity
from senet.views.points import Point

_ID, _STEP = "senet.run", "step"
_METRICS_AT_ONCE, _PARAMETERS_AT_ONCE, _LONGEST = 1000, 100, 500  # limits of MLflow's servers


class MlflowRun:
    """The run whose tag is the id of the run directory: it is looked up, so that a start that was killed before it had
    noted the number of its run makes no second one.

    Each step has a metric ``step``, sent in one request with its others: its last value is what MLflow has. A value
    that is sent twice is one for MLflow, since its time is a function of the run directory.
    """

    def __init__(self, run_dir: Path, identity: Identity) -> None:
        self._identity = identity
        self._database = run_dir.resolve() / "mlflow.db"
        self.address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self._database}"

    def open(self) -> int:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if self.address.startswith("sqlite:") and re.search("[?#]", self.address):
            raise ConfigError(f"{self.address}: MLflow takes the path up to the ? or # in it; choose another run_dir")
        self._mlflow = library("mlflow", "mlflow")
        for name in ("mlflow", "alembic", "urllib3"):  # they tell of each step and each try; the view warns once
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if self.address == f"sqlite:///{self._database}" and not self._database.exists():
            self._make_database()
        self._client = self._mlflow.MlflowClient(tracking_uri=self.address)
        experiment = _experiment(self._client)
        found = self._client.search_runs([experiment], f"tags.`{_ID}` = '{self._identity.id}'")
        self._run = found[0] if found else self._create(experiment)
        self._send_options()
        return int(self._run.data.metrics.get(_STEP, -1))

    def send(self, points: Sequence[Point]) -> None:
        for metrics in _at_once(points):
            self._client.log_batch(self._run.info.run_id, [self._metric(*each) for each in metrics])

    def close(self, *, finished: bool) -> None:
        if finished:
            self._client.update_run(self._run.info.run_id, status="FINISHED")

    def _make_database(self) -> None:
        """Whole or not at all: MLflow makes it in many steps, and cannot go on with one that a kill has left."""
        new = self._database.with_suffix(".new")
        new.unlink(missing_ok=True)
        self._mlflow.MlflowClient(tracking_uri=f"sqlite:///{new}").get_experiment_by_name("Default")
        new.rename(self._database)

    def _create(self, experiment: str) -> Any:
        who, group = self._identity, self._identity.group
        tags = {_ID: who.id, "mlflow.runName": f"{group}/{who.name}" if group else who.name}
        tags |= {"senet.sweep": group} if group else {}
        return self._client.create_run(experiment, start_time=round(1000 * who.began), tags=tags)

    def _send_options(self) -> None:
        """Those of the first start: MLflow lets none be changed."""
        wanted = {key: str(value)[:_LONGEST] for key, value in self._identity.options.items()}
        left = [(key, text) for key, text in wanted.items() if text and key not in self._run.data.params]
        entity = self._mlflow.entities.Param
        for first in range(0, len(left), _PARAMETERS_AT_ONCE):
            some = [entity(key, text) for key, text in left[first : first + _PARAMETERS_AT_ONCE]]
            self._client.log_batch(self._run.info.run_id, params=some)

    def _metric(self, point: Point, name: str, value: float) -> Any:
        when = round(1000 * (self._identity.began + point.train_s))
        return self._mlflow.entities.Metric(name, value, when, point.step)


def _experiment(client: Any) -> str:
    """Its id, as users of MLflow name it: by MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME, else the default one."""
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _at_once(points: Sequence[Point]) -> Iterator[list[tuple[Point, str, float]]]:
    """As many whole points as one request may hold."""
    batch: list[tuple[Point, str, float]] = []
    for point in points:
        some = [(point, name, value) for name, value in (*point.values.items(), (_STEP, float(point.step)))]
        if len(batch) + len(some) > _METRICS_AT_ONCE:
            yield batch
            batch = []
        batch += some
    if batch:
        yield batch
