"""Fixtures: one store of the digits for all tests, and training in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from senet.config import DataConfig
from senet.data import ImageData, open_data
from senet.preemption import StopFlag
from senet.run import run
from senet.trainer import Summary
from tests.harness import tiny, tiny_config

Train = Callable[..., Summary]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.root`` with the store of the small run already built."""
    root = tmp_path_factory.mktemp("data")
    open_data(DataConfig(source="digits", image_size=16, root=str(root)))
    return root


@pytest.fixture
def digits(data_root: Path) -> ImageData:
    return open_data(DataConfig(source="digits", image_size=16, root=str(data_root)))


@pytest.fixture
def train_here(data_root: Path) -> Iterator[Train]:
    """Train the small run in this process with one rank: ``train_here(run_dir, "key=value", ..., stop=...)``."""
    threads = torch.get_num_threads()

    def train(run_dir: Path, *overrides: str, stop: StopFlag | None = None) -> Summary:
        options = (f"data.root={data_root}", f"run_dir={run_dir}", *overrides)
        try:
            return run(tiny_config(*options), tiny(*options), StopFlag() if stop is None else stop)
        finally:
            if dist.is_initialized():  # an error leaves the group to the end of the process
                dist.destroy_process_group()

    yield train
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
