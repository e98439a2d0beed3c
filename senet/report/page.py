"""What report.html shows of runs and predictions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from senet.report.analysis import Predictions
from senet.report.drawings import Drawing
from senet.report.markup import Table, fill
from senet.report.seen import NONE, seen
from senet.rundir.history import Run, cause, changed, judged, names
from senet.rundir.hours import PARTS, duration

_WEIGHTS = {"ema": "averaged", "test": "raw"}
_ENDINGS = {
    "interrupted": "interrupted by the user, after a save",
    "preempted": "stopped by a signal, after a save",
    "killed": "killed before it could save",
    "failed": "failed",
    "unknown": "not recorded",
    "finished": "finished",
}


def render(
    runs: Sequence[Run],
    drawings: Mapping[str, Drawing],
    svgs: Mapping[str, bytes],
    predictions: Predictions | None,
    why: str,
) -> bytes:
    """The page of the first run. ``why``: the reason why there are no predictions."""
    run, of_images = runs[0], seen(predictions) if predictions else None
    return fill(
        Path(__file__).with_name("page.html"),
        drawings,
        svgs,
        script="search.js" if of_images and of_images["worst"] else "",
        run=run,
        tiles=_tiles(run, predictions),
        comparison=_comparison(runs) if len(runs) > 1 else None,
        differences=_differences(runs),
        why=why,
        seen=of_images,
        facts=_facts(run),
        hours=_hours(run),
        starts=_starts(run),
        options=Table(("option", "value"), [(key, str(value)) for key, value in run.options.items()]),
    )


def _tiles(run: Run, predictions: Predictions | None) -> list[tuple[str, str]]:
    """The most important numbers."""
    tiles = []
    if predictions:
        tiles.append((f"{predictions.accuracy:.2f} %", f"of {len(predictions.labels_N):,} test images right"))
        if predictions.top5 is not None:
            tiles.append((f"{predictions.top5:.2f} %", "have their class among the five most probable"))
    elif run.epochs:
        tiles.append((f"{run.epochs[-1]['best_top1']:.2f} %", f"best {run.images} accuracy"))
    if run.epochs:
        last = run.epochs[-1]
        tiles.append((f"{last['epoch']} of {run.options.get('train.epochs', '?')}", "epochs"))
        tiles.append((duration(last["train_s"]), "of training, without tests"))
        tiles.append((f"{_images_per_s(run):,.0f}", "images per second"))
    count = len(run.interruptions)
    return [*tiles, (str(count), "interruption" if count == 1 else "interruptions")]


def _facts(run: Run) -> list[tuple[str, str]]:
    start = run.starts[-1] if run.starts else {}
    status = run.status
    facts = [("State", " ".join(filter(None, [status.get("state", "unknown"), str(status.get("reason", ""))])))]
    facts.append(("Network", str(run.options.get("model.name", "unknown"))))
    facts.append(("Images", str(run.options.get("data.source", "unknown"))))
    if run.epochs:
        last = run.epochs[-1]
        best = next((row for row in run.epochs if row["epoch"] == last["best_epoch"]), last)
        weights = f" ({_WEIGHTS[judged(best)]} weights)" if "ema_top1" in best else ""
        after = f"after epoch {last['best_epoch']}{weights}"
        facts.append((f"Best {run.images} accuracy", f"{last['best_top1']:.2f} % {after}"))
        titles = {"train": "training", "test": run.images, "ema": f"{run.images}, averaged weights"}
        for kind, title in titles.items():
            if f"{kind}_loss" in last:
                loss, top1 = last[f"{kind}_loss"], last[f"{kind}_top1"]
                top5 = f", top-5 {last[f'{kind}_top5']:.2f} %" if f"{kind}_top5" in last else ""
                facts.append((f"Last epoch, {title}", f"loss {loss:.4f}, accuracy {top1:.2f} %{top5}"))
        facts.append(("Time", f"{duration(last['train_s'])} of training, without tests"))
        facts.append(("Speed", f"{_images_per_s(run):,.0f} images/s (median of the epochs)"))
    causes = [interruption.cause for interruption in run.interruptions]
    counted = ", ".join(f"{causes.count(each)} {each}" for each in _ENDINGS if each in causes)
    facts.append(("Interruptions", f"{len(causes)} ({counted})" if counted else "none"))
    if status.get("job"):
        facts.append(("SLURM requeues", str(run.requeues)))
    for key, title in (("world_size", "Ranks"), ("device", "Device"), ("amp", "Precision"), ("commit", "Commit")):
        if key in start:
            facts.append((title, str(start[key])))
    versions = [f"{name} {start[name]}" for name in ("python", "torch", "cuda", "numpy") if start.get(name)]
    facts.append(("Versions", ", ".join(versions) or "unknown"))
    return [*facts, ("Command", _command(start.get("argv", [])))]


def _starts(run: Run) -> Table:
    """Each start of the run, and how the previous one ended."""
    rows = []
    for index, start in enumerate(run.starts):  # counted here: generations also count refused starts
        after = start.get("after", {})
        ended = _ENDINGS[cause(start)] if index else ""
        reason = f" ({after['reason']})" if after.get("reason") else ""
        job = f"{after['job']}, restart {after['job_restarts']}" if after.get("job") else ""
        facts = [str(start.get(key, "")) for key in ("world_size", "device")]
        time = str(start.get("time", "")).replace("T", " ").removesuffix("+00:00")
        cells = [str(index + 1), time, f"{start['resumed_from']:,}", ended + reason, job, *facts]
        rows.append([*cells, str(start.get("commit", ""))[:10], ", ".join(changed(start))])
    header = ["start", "time (UTC)", "from update", "previous start", "previous SLURM job", "ranks", "device", "commit"]
    header += ["changed options"]
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]  # no jobs without SLURM
    return Table([header[column] for column in used], [[row[column] for column in used] for row in rows])


def _hours(run: Run) -> dict[str, Any] | None:
    """Where its time went: each part, and the share that was effective."""
    if (hours := run.hours) is None:
        return None
    rows = [
        [PARTS[part], duration(seconds), f"{100 * seconds / hours.wall_s:.1f}"]
        for part, seconds in hours.parts.items()
        if seconds > 0
    ]
    table = Table(("part", "time", "%"), [*rows, ["all", duration(hours.wall_s), "100.0"]])
    return {"table": table, "effective": f"{100 * hours.effective:.1f} %", "steps_again": f"{hours.steps_again:,}"}


def _comparison(runs: Sequence[Run]) -> Table:
    header = ("run", "epochs", "best %", "at epoch", "last %", "last loss", "training", "images/s", "interruptions")
    rows = []
    for name, run in zip(names(runs), runs, strict=True):
        row = [name, *[NONE] * 7, str(len(run.interruptions))]
        if run.epochs:
            last = run.epochs[-1]
            row[1:5] = [str(last["epoch"]), f"{last['best_top1']:.2f}", str(last["best_epoch"]), ""]
            row[4:6] = [f"{last[f'{judged(last)}_top1']:.2f}", f"{last[f'{judged(last)}_loss']:.4f}"]
            row[6:8] = [duration(last["train_s"]), f"{_images_per_s(run):,.0f}"]
        rows.append(row)
    return Table(header, rows)


def _differences(runs: Sequence[Run]) -> Table:
    """The options that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.options)
    rows = [[key, *(str(run.options.get(key, NONE)) for run in runs)] for key in keys]
    return Table(("option", *names(runs)), [row for row in rows if len(set(row[1:])) > 1])


def _command(argv: Sequence[str]) -> str:
    """The command as typed, without the values of the job's options, which may contain secrets."""
    return shlex.join(f"{arg.partition('=')[0]}=..." if arg.startswith(("slurm.", "slurm=")) else arg for arg in argv)


def _images_per_s(run: Run) -> float:
    return float(median(row["images_per_s"] for row in run.epochs))
