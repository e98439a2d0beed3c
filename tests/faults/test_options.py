"""Options that are nonsense: accepted, or refused with one line; never a traceback, never an absurd allocation."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from senet import REPOSITORY
from senet.config.load import load_config, to_flat, to_yaml
from senet.config.options import Config
from senet.errors import ConfigError
from tests.faults.conftest import FULL, Trial

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
KEYS = [*sorted(to_flat(Config())), "slurm.time", "slurm.environment.A", "slurm.sbatch.b", "slurm.setup"]
WORDS = st.sampled_from(
    ["true", "null", "off", "nan", "-inf", "1e999", "0x10", "1_000", "[1,2]", "[[1]]", "{a: 1}", "???"]
)
VALUES = (
    WORDS
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(max_size=12)
    | st.sampled_from(
        ["${seed}", "${oc.env:HOME}", "${run_dir}", "!!python/name:os.system", "*a", "&a [*a]", "- -", "'"]
    )
)
MEGABYTES = 1024
many = settings(
    max_examples=2000 if FULL else 200,
    derandomize=not FULL,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)


def is_accepted_or_refused_in_one_line(load: Callable[[], Config], resolved: Path) -> None:
    """What is accepted is the same again when it is read from the resolved configuration."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = ""
    try:
        config = load()
        resolved.write_text(to_yaml(config), encoding="utf-8")
        assert load_config([str(resolved)]) == config
    except ConfigError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1, said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * MEGABYTES


@pytest.mark.fault("mutated options (hypothesis; 200 or 2,000 each)", quick=1, full=1)
@many
@given(
    st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=8), VALUES), min_size=1, max_size=4), st.integers(1, 9)
)
def test_overrides(trial: Trial, tmp_path: Path, pairs: list[tuple[str, str]], world_size: int) -> None:
    is_accepted_or_refused_in_one_line(
        lambda: load_config([f"{key}={value}" for key, value in pairs], world_size), tmp_path / "a.yaml"
    )


def mutate(tree: Any, draw: Callable[..., Any]) -> Any:
    """Replace, drop or add something at one random place."""
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=6,
    )
    if not isinstance(tree, dict) or not tree or draw(st.booleans()):
        return draw(junk)
    key = draw(st.sampled_from(sorted(tree)))
    return {**tree, key: mutate(tree[key], draw)} | draw(st.dictionaries(st.text(max_size=6), junk, max_size=1))


@pytest.mark.fault("mutated options (hypothesis; 200 or 2,000 each)", quick=1, full=1)
@many
@given(st.data())
def test_files(trial: Trial, tmp_path: Path, data: st.DataObject) -> None:
    tree = mutate(yaml.safe_load(data.draw(st.sampled_from(CONFIGS)).read_text()), data.draw)
    path = tmp_path / "mutated.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    is_accepted_or_refused_in_one_line(lambda: load_config([str(path)]), tmp_path / "a.yaml")


@pytest.mark.fault("mutated options (hypothesis; 200 or 2,000 each)", quick=1, full=1)
@many
@given(st.data())
def test_bytes(trial: Trial, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(CONFIGS)).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated.yaml"
    path.write_bytes(content)
    is_accepted_or_refused_in_one_line(lambda: load_config([str(path)]), tmp_path / "a.yaml")
