"""Figures of a run, whatever it has logged and however it was interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from senet.report.curves import comparison, curves
from senet.report.page import render
from senet.rundir.history import Run, cause


def run(*, epochs: int = 0, intervals: int = 0, starts: list[dict[str, Any]] | None = None, **losses: float) -> Run:
    """Ten updates an epoch, a log row after each fifth; ``e1=130_140`` is the loss of epoch 1, ``i3`` of log row 3."""

    def row(kind: str, number: int, step: int) -> dict[str, Any]:
        loss = losses.get(f"{kind}{number}", 2.0 / number)
        return {"step": step, "epoch": number, "train_loss": loss, "train_top1": 50.0, "lr": 0.1 / number}

    tested = {
        "test_loss": 1.0,
        "test_top1": 60.0,
        "best_top1": 60.0,
        "best_epoch": 1,
        "train_s": 9,
        "images_per_s": 9.0,
    }
    return Run(
        "a run",
        Path(),
        {},
        [row("e", number, 10 * number) | tested for number in range(1, epochs + 1)],
        [row("i", number, 5 * number) for number in range(1, intervals + 1)],
        starts or [],
        {},
    )


def axes_of(figure: Figure) -> Axes:
    [axes] = figure.axes
    return axes


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


@pytest.mark.parametrize(("epochs", "intervals"), [(0, 1), (0, 2), (1, 0), (1, 1), (3, 6)])
def test_each_figure_shows_something_however_few_rows_there_are(epochs: int, intervals: int) -> None:
    for name, figure in curves(run(epochs=epochs, intervals=intervals)).items():
        lines = axes_of(figure).get_lines()
        assert lines, name
        for line in lines:
            points = len(list(line.get_xdata()))
            assert points > 2 or (points and line.get_marker() == "o") or line.get_marker() in ("s", "^"), name


def test_the_learning_rate_is_drawn_of_log_rows_and_epochs_together() -> None:
    [line] = axes_of(curves(run(epochs=2, intervals=1))["learning_rate"]).get_lines()
    assert list(line.get_xdata()) == [0.5, 1.0, 2.0]
    assert list(line.get_ydata()) == [0.1, 0.1, 0.05]


def test_before_the_first_row_the_figures_say_so() -> None:
    for figure in curves(run()).values():
        assert [text.get_text() for text in axes_of(figure).texts] == ["nothing logged yet"]


def test_losses_far_above_the_rest_do_not_flatten_the_axis_and_are_named() -> None:
    wild = run(epochs=5, intervals=10, e1=12_000, i1=130_140, i2=5000)
    figure = curves(wild)["loss"]
    assert axes_of(figure).get_ylim()[1] < 2.0
    assert "beyond the axis, up to 130,140" in legend(figure)
    test = dataclasses.replace(wild, epochs=[row | {"test_loss": row["train_loss"]} for row in wild.epochs])
    compared = comparison([test, run(epochs=5)], ["a", "b"])["comparison_loss"]
    assert axes_of(compared).get_ylim()[1] < 2.0
    assert "beyond the axis, up to 12,000" in legend(compared)


@pytest.mark.parametrize(
    "losses",
    [
        {},  # falls as they do
        {f"e{number}": 4.0 * 0.3**number for number in range(1, 9)},  # fast, by three decades
        {f"e{number}": 10.0**number for number in range(1, 9)},  # diverges: that is the curve
        {"e8": float("nan"), "e7": float("inf")},
    ],
)
def test_a_loss_that_falls_or_diverges_is_drawn_in_full(losses: dict[str, float]) -> None:
    figure = curves(run(epochs=8, intervals=16, **losses))["loss"]
    assert not [text for text in legend(figure) if text.startswith("beyond")]


def test_an_accuracy_that_jumps_is_drawn_in_full() -> None:
    jump = run(epochs=8)
    epochs = [row | {"test_top1": 5.0 if row["epoch"] < 7 else 95.0} for row in jump.epochs]
    figure = curves(dataclasses.replace(jump, epochs=epochs))["accuracy"]
    assert axes_of(figure).get_ylim()[1] > 95


STARTS: list[dict[str, Any]] = [
    {"generation": 1, "resumed_from": 0},
    {"generation": 2, "resumed_from": 10, "after": {"state": "stopped", "reason": "SIGINT"}},
    {"generation": 3, "resumed_from": 10, "after": {"state": "stopped", "reason": "SIGHUP"}},
    {"generation": 5, "resumed_from": 20, "after": {"state": "stopped", "reason": "SIGTERM"}},
    {
        "generation": 8,
        "resumed_from": 30,
        "after": {"state": "finished"},
        "changed": {"optim.lr": [0.1, 0.03]},
        "lr": [1e-4, 0.03],
    },
]


def test_a_persons_interruption_is_no_preemption() -> None:
    assert [cause(start) for start in STARTS[1:]] == ["interrupted", "interrupted", "preempted", "finished"]
    figure = curves(run(epochs=4, starts=STARTS))["loss"]
    assert {"resumed after: interrupted (2 times)", "resumed after: preempted"} < set(legend(figure))


def test_changed_options_are_marked_in_figures_and_page_and_starts_are_counted_as_a_person_would() -> None:
    changed = run(epochs=4, starts=STARTS)
    for figure in curves(changed).values():
        [mark] = [line for line in axes_of(figure).get_lines() if line.get_label() == "options changed"]
        assert list(mark.get_xdata()) == [3.0]
    page = render([changed], {}, {}, None, "").decode()
    text = "optim.lr: 0.1 -&gt; 0.03, the learning rate: 0.0001 -&gt; 0.03"
    assert f"After update 30: {text}." in page
    assert page.count(text) == 2  # and in the table of the starts
    for number in range(1, 6):
        assert f'<th scope="row">{number}</th>' in page
    assert '<th scope="row">8</th>' not in page
    assert "interrupted by the user, after a save (SIGINT)" in page
    assert "3 (2 interrupted, 1 preempted)" in page


def test_seven_runs_and_more_can_be_told_apart() -> None:
    titles = [f"experiments with a long name, number {number}" for number in range(12)]
    for figure in comparison([run(epochs=3)] * 12, titles).values():
        looks = {
            (line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor())
            for line in axes_of(figure).get_lines()
        }
        assert len(looks) == len(set(legend(figure))) == 12
