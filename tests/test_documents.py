"""What the documents say is there: links, files, modules, options, messages."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from senet import REPOSITORY
from senet.config.load import load_config
from senet.config.options import Config, DataConfig, options, those
from senet.data.sources.choice import open_files, open_source
from senet.sweep.request import NAMES, read_request
from tests.documents import LANGUAGES, OTHERS, PAGES, anchors, blocks, commands, inline_code, links, name, prose

GROUPS = {field.name for field in dataclasses.fields(Config)} - {"run_dir", "seed"}
OPTIONS = (
    {key for key, _ in options()}
    | {f"drill.{name}" for name in ("steps", "ranks")}
    | {f"sweep.{name}" for name in NAMES}
)
each_page = pytest.mark.parametrize("page", PAGES, ids=name)


def is_web(link: str) -> bool:
    return link.startswith(("http://", "https://", "mailto:"))


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name)
def test_every_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    dead = []
    for link in filter(lambda each: not is_web(each), links(page)):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(REPOSITORY) and target.exists()
        if not inside or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set(), {PAGES[0]}
    while new:
        reached |= new
        targets = {
            (page.parent / link.partition("#")[0]).resolve() for page in new for link in links(page) if not is_web(link)
        }
        new = {target for target in targets if target.suffix == ".md" and target.exists()} - reached
    assert not {name(page) for page in [*PAGES, *OTHERS] if page not in reached}


@pytest.mark.parametrize("page", PAGES[1:], ids=name)
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) < 150


def test_the_readme_is_shorter() -> None:
    text = PAGES[0].read_text()
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 900


@each_page
def test_every_block_says_what_it_is(page: Path) -> None:
    assert not [block for block in blocks(page) if block.language not in LANGUAGES]


@each_page
def test_every_option_that_is_named_exists(page: Path) -> None:
    lines = [command.text for block in blocks(page) if block.language == "sh" for command in commands(block)]
    words = [word for line in lines for word in line.split() if "=" in word]
    words += [word for code in inline_code(page) for word in code.split()]
    found = [re.match(r"([a-z]+)\.([a-z_]+)(?:\.\w+)?(=|$)", word) for word in words]
    named = {(match[1], match[2]) for match in found if match and (match[1] in GROUPS or match[3])}
    files = ("jsonl", "json", "yaml", "txt", "py", "pt")
    assert not {f"{group}.{last}" for group, last in named if last not in files} - OPTIONS


@each_page
def test_every_file_and_module_that_is_named_exists(page: Path) -> None:
    missing = []
    for code in inline_code(page):
        if re.fullmatch(r"(senet|slurm|tests|configs|benchmarks|docs)/[\w./*-]*", code):
            missing += [] if list(REPOSITORY.glob(code.rstrip("/"))) else [code]
        for module in re.findall(r"\bsenet(?:\.\w+)+", code):
            path = REPOSITORY / module.replace(".", "/")
            is_module = path.is_dir() or path.with_suffix(".py").exists()
            missing += [] if is_module or defines(path.parent.with_suffix(".py"), path.name) else [module]
    for thing, file in re.findall(r"`(?:\w+\.)*(\w+)` in `([\w/]+\.py)`", prose(page)):
        missing += [] if defines(REPOSITORY / file, thing) else [f"{thing} in {file}"]
    assert not missing


def defines(file: Path, thing: str) -> bool:
    text = file.read_text() if file.exists() else ""
    return re.search(rf"^\s*((def|class) {thing}\b|{thing}\b.* = )", text, re.MULTILINE) is not None


@each_page
def test_every_block_of_options_is_read(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            (tmp_path / "options.yaml").write_text(block.text)
            read = read_request if block.text.startswith("sweep:") else load_config
            read([str(tmp_path / "options.yaml")])


def test_the_page_on_resume_names_the_options_that_may_change_freely() -> None:
    [row] = [
        line for line in (REPOSITORY / "docs/resume.md").read_text().splitlines() if line.startswith("| **freely**")
    ]
    also = {"train.device", "train.threads_per_rank"}  # with a warning: the row below
    free = {key for key in those("free") if not key.startswith("slurm.")}
    assert set(re.findall(r"`([a-z_.]+)`", row)) - {"slurm"} == free - also


def test_a_folder_is_split_as_the_page_says(tmp_path: Path) -> None:
    [code] = [block.text for block in blocks(REPOSITORY / "docs/your-data.md") if 'Path("all")' in block.text]
    images = [Path(name, f"{number}.png") for name, count in (("cat", 12), ("dog", 5)) for number in range(count)]
    for image in images:
        (tmp_path / "all" / image).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / image).write_text(str(image))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    config = DataConfig(source="imagefolder", folder=str(tmp_path / "photos"))
    files = open_files(config)
    assert files is not None
    train, test = (files.index(split).paths() for split in ("train", "test"))
    source = open_source(config, files)
    assert (source.classes, source.left_out) == (["cat", "dog"], "")
    assert (len(train), len(test)) == (13, 4)
    assert sorted(Path(path).read_text() for path in (*train, *test)) == sorted(map(str, images))


def test_the_citation_has_the_version_of_the_package() -> None:
    package = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (package["version"], package["license"])


def _texts(file: Path) -> list[str]:
    """All strings of a module but doc strings, with … for each value that is put in."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    docs = {node.value for node in nodes if isinstance(node, ast.Expr)}
    found = []
    for node in nodes:
        if node in docs:
            continue
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_every_message_that_is_explained_is_one_of_the_program() -> None:
    page = prose(REPOSITORY / "docs/questions.md")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    code = [
        text for folder in ("senet", "slurm") for file in (REPOSITORY / folder).rglob("*.py") for text in _texts(file)
    ]
    code.append((REPOSITORY / "launch.sh").read_text())
    assert len(messages) > 50
    assert not [each for each in messages if not any(each in text for text in code)]
