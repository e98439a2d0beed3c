"""Lines of a terminal -> SVG. A card with colours of its own, so that it fits a light and a dark page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

COLUMNS = 66  # a phone shows them in letters that can still be read
INDENT = "    "
CELL_W, CELL_H, MARGIN = 8, 19, 14  # pixels
STYLE = """
text { font: 13.3px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
  fill: #c9d1d9; white-space: pre; }
.typed { fill: #ffffff; font-weight: 700; }
.bad { fill: #ff7b72; font-weight: 700; }
.good { fill: #7ee787; }
.note { fill: #f2cc60; }
"""
COLOURS = (  # first match wins
    (re.compile(r"\$ "), "typed"),
    (re.compile(r"Killed$"), "bad"),
    (re.compile(r"resumed from |finished: |[0-9a-f]{64} "), "good"),
)


def to_svg(lines: Sequence[str], notes: Mapping[int, str], *, title: str) -> str:
    """Lines that are too long go on in an indented row.

    Args:
        notes: number of a line -> a remark of ours, shown behind it in another colour.
        title: for those who cannot see the picture.
    """
    rows = []
    for number, line in enumerate(lines):
        style = next((name for pattern, name in COLOURS if pattern.match(line)), "")
        if "  " in line:  # between columns; a line is folded there, not inside of one
            line = re.sub(r"(?<! ) (?! )", "\N{NO-BREAK SPACE}", line)
        folded = textwrap.wrap(line, COLUMNS, subsequent_indent=INDENT, break_long_words=False) or [""]
        rows += [[(text, style)] for text in folded]
        if number in notes:
            rows[-1].append((f"  \N{LEFTWARDS ARROW} {notes[number]}", "note"))
    texts = []
    for number, row in enumerate(rows):
        x, y = MARGIN, MARGIN + CELL_H * number + 14
        for text, style in row:
            kind = f' class="{style}"' if style else ""
            width = CELL_W * len(text)
            texts.append(f'<text x="{x}" y="{y}"{kind} textLength="{width}">{escape(text, quote=False)}</text>')
            x += width
    width, height = 2 * MARGIN + CELL_W * COLUMNS, 2 * MARGIN + CELL_H * len(rows)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="#161b22" stroke="#6e7681"/>',
            *texts,
            "</svg>\n",
        ]
    )
