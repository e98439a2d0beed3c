"""Pages of one self-contained file each. The template engine escapes all text that comes from files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from senet.report.drawings import Drawing

_PIXELS_PER_INCH = 96


class Table(NamedTuple):
    """Cells as text; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def fill(
    template: Path, drawings: Mapping[str, Drawing], svgs: Mapping[str, bytes], *, script: str = "", **values: Any
) -> bytes:
    """A page of a template that may use layout.html and parts.html, with these figures and values.

    Args:
        script: a file of this folder, the only script that the page may run: its policy names the hash.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {
        name: {
            "uri": f"data:image/svg+xml;base64,{base64.b64encode(svgs[name]).decode()}",
            "alt": drawing.alt,
            "wide": drawing.wide,
            "width": round(drawing.figure.get_figwidth() * _PIXELS_PER_INCH),
            "height": round(drawing.figure.get_figheight() * _PIXELS_PER_INCH),
        }
        for name, drawing in drawings.items()
    }
    code = Path(__file__).with_name(script).read_text() if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    values |= {"pictures": pictures, "script": Markup(code), "script_sha256": digest}
    text = environment.get_template(template.name).render(values)
    return text.encode("utf-8", errors="replace")  # file names need not be UTF-8
