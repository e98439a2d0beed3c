"""The pages that people read, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from senet import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
"""What a reader follows: their commands are run."""
OTHERS = [
    *(REPOSITORY / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *(path for folder in ("benchmarks", "slurm", "tests") for path in sorted((REPOSITORY / folder).rglob("*.md"))),
]
LANGUAGES = {
    "sh": "commands, one a line",
    "console": "commands behind '$ ' and what they print, '...' for anything",
    "python": "run; one that begins with '# name.py' is written to that file",
    "diff": "changes of the code, under '--- file' each",
    "yaml": "options",
    "text": "what somebody saw, or files",
}
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command line, and what it is shown to print; None where that is not shown."""

    text: str
    output: str | None = None


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(match[1], match[2], text[: match.start()].count("\n") + 1) for match in _FENCE.finditer(text)]


def prose(page: Path) -> str:
    """The page without its blocks, as many lines as before."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())


def inline_code(page: Path) -> list[str]:
    return [match[1] for match in re.finditer(r"`([^`\n]+)`", prose(page))]


def commands(block: Block) -> list[Command]:
    """Those of a block, without comments; a line that ends in a backslash goes on in the next."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in text.splitlines())
        return [Command(line) for line in lines if line]
    if block.language == "console":
        parts = (part.partition("\n") for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:])
        return [Command(line.strip(), output) for line, _, output in parts]
    return []


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    found: dict[str, int] = {}
    for match in re.finditer(r"^#{1,6} +(.*?) *#*$", prose(page), re.MULTILINE):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
        if found[anchor]:
            found[f"{anchor}-{found[anchor]}"] = 0
    return set(found)


def links(page: Path) -> list[str]:
    """Where its links and pictures lead, as they stand there."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    in_tags = re.findall(r"(?:src|srcset|href)=\"([^\" ]+)", text)
    return re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text) + in_tags
