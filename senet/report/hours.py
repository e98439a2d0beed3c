"""Where the time of a run went, as a bar."""

from __future__ import annotations

from matplotlib.figure import Figure

from senet.report.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, styled
from senet.rundir.hours import PARTS, Hours

_LOOKS = {  # part -> colour, hatch
    "queued": ("#bbbbbb", ""),
    "starting": (ORANGE, ""),
    "waiting": (SKY, ""),
    "training": (BLUE, ""),
    "evaluating": (GREEN, ""),
    "saving": (PURPLE, ""),
    "again": (RED, "//"),
    "lost": (BLACK, ""),
    "not_running": ("white", ".."),
}


@styled()
def bar(hours: Hours) -> Figure:
    """One bar of the wall time, in the order in which a run goes through its parts; those of 0 s are left out."""
    figure = Figure((5.3, 1.7), layout="constrained")
    axes = figure.subplots()
    begin = 0.0
    for part, seconds in hours.parts.items():
        if seconds > 0:
            share = 100 * seconds / hours.wall_s
            colour, hatch = _LOOKS[part]
            label = f"{PARTS[part]} ({share:.1f} %)"
            axes.barh(0, share, left=begin, color=colour, hatch=hatch, edgecolor="#555555", linewidth=0.4, label=label)
            begin += share
    axes.set(xlim=(0, 100), xlabel="share of the wall time (%)", yticks=[])
    figure.legend(loc="outside lower center", ncols=2)
    figure.set_figheight(1.2 + 0.2 * -(-sum(seconds > 0 for seconds in hours.parts.values()) // 2))  # inches
    return figure
