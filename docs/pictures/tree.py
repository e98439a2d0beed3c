"""Draws ``shards.svg``: who computes what of one update with four shards, on one, two and four ranks.

A card with colours of its own, so that it fits a light and a dark page.
"""

from __future__ import annotations

SHARDS = 4
PANEL_W, PANEL_H, GAP, MARGIN = 250, 236, 18, 14  # pixels
SHARD_W, SHARD_H, TOP, LEVEL_H = 53, 34, 58, 56
TITLE = "Four shards of a batch on one, two and four ranks: the same shards, and the same sums of their gradients"
STYLE = """
text { font: 12.5px system-ui, "Segoe UI", "DejaVu Sans", "Liberation Sans", sans-serif; fill: #c9d1d9;
  text-anchor: middle; }
.legend { text-anchor: start; }
.head { font-weight: 700; fill: #ffffff; }
.rank { fill: #21262d; stroke: #6e7681; rx: 8px; }
.shard { fill: #1f4f7a; rx: 4px; }
.sum { fill: #238636; }
.between { fill: #9e6a03; }
line { stroke: #8b949e; stroke-width: 1.5; }
"""


def _shard_x(shard: int) -> float:
    return (PANEL_W - SHARDS * SHARD_W) / (SHARDS + 1) * (shard + 1) + SHARD_W * (shard + 0.5)


def _panel(ranks: int) -> list[str]:
    """One column of the picture: the shards in boxes of the ranks, and the tree below."""
    each = SHARDS // ranks
    parts = [f'<text class="head" x="{PANEL_W / 2:g}" y="20">{ranks} rank{"s" if ranks > 1 else ""}</text>']
    for rank in range(ranks):
        left, right = _shard_x(rank * each) - SHARD_W / 2 - 5, _shard_x((rank + 1) * each - 1) + SHARD_W / 2 + 5
        parts.append(
            f'<rect class="rank" x="{left:g}" y="{TOP - 26}" width="{right - left:g}" height="{SHARD_H + 32}"/>'
        )
        parts.append(f'<text x="{(left + right) / 2:g}" y="{TOP - 9}">rank {rank}</text>')
    places = []
    for shard in range(SHARDS):
        x = _shard_x(shard)
        parts.append(f'<rect class="shard" x="{x - SHARD_W / 2:g}" y="{TOP}" width="{SHARD_W}" height="{SHARD_H}"/>')
        parts.append(f'<text x="{x:g}" y="{TOP + 22}">shard {shard}</text>')
        places.append((x, float(TOP + SHARD_H + 6)))
    span = 1
    while len(places) > 1:
        span *= 2
        kind = "sum" if span <= each else "between"
        sums = []
        for (x, y), (other_x, _) in zip(places[::2], places[1::2], strict=True):
            middle, below = (x + other_x) / 2, y + LEVEL_H
            parts += [f'<line x1="{end:g}" y1="{y:g}" x2="{middle:g}" y2="{below - 11:g}"/>' for end in (x, other_x)]
            parts.append(f'<circle class="{kind}" cx="{middle:g}" cy="{below:g}" r="11"/>')
            parts.append(f'<text x="{middle:g}" y="{below + 5:g}">+</text>')
            sums.append((middle, below + 11))
        places = sums
    return parts


def draw_shards() -> str:
    """The whole picture."""
    width, height = 3 * PANEL_W + 2 * GAP + 2 * MARGIN, PANEL_H + 2 * MARGIN + 26
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{TITLE}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#0d1117"/>',
    ]
    for number, ranks in enumerate((1, 2, 4)):
        lines += [f'<g transform="translate({MARGIN + number * (PANEL_W + GAP)} {MARGIN})">', *_panel(ranks), "</g>"]
    legend = ((0.2, "sum", "added inside a rank"), (0.5, "between", "added between ranks: the same two numbers"))
    for place, kind, text in legend:
        x, y = width * place, height - MARGIN - 6
        lines.append(f'<circle class="{kind}" cx="{x:g}" cy="{y - 4}" r="7"/>')
        lines.append(f'<text class="legend" x="{x + 14:g}" y="{y}">{text}</text>')
    return "\n".join([*lines, "</svg>", ""])
