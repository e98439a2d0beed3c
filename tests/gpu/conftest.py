"""What is tried on a GPU (``make gpu``). GPU_TESTS_DEVICE=cpu tries on a CPU what a CPU can do in its place."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import pytest
import torch

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
HERE = f"train.device={DEVICE}"
SENET18 = ("model.name=senet18", "data.image_size=32") if ON_GPU else ()
"""What is trained where the kernels matter; a CPU keeps to the small network."""
SMALLER = ("data.image_size=32", "augment.small_size=24", "augment.small_epochs=1")
"""One epoch of smaller images."""
MARKS = [
    pytest.mark.gpu,
    pytest.mark.slow,
    # a deprecation of torch's ends no test here, an operation without a deterministic form does
    pytest.mark.filterwarnings("default", "error:.*does not have a deterministic"),
]
"""Of every file in this folder."""

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a process uses CUDA for the first time
_said = pytest.StashKey[list[str]]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the same line for all tests that lack the same."""
    needs, found = item.get_closest_marker("gpu"), torch.cuda.device_count()
    assert needs is not None
    if not ON_GPU:
        if needs.kwargs.get("only"):
            pytest.skip("a CPU cannot stand in for this")
    elif not found:
        pytest.skip("no GPU is visible to torch; GPU_TESTS_DEVICE=cpu tries on a CPU what a CPU can do")
    elif found < (needs.args or (1,))[0]:
        pytest.skip("needs two GPUs, and torch sees one")
    elif item.get_closest_marker("ranks") and takes_one_process():
        pytest.skip("the GPU takes one process at a time (compute mode EXCLUSIVE_PROCESS), and has this one")


def takes_one_process() -> bool:
    """As the driver says of the first GPU."""
    cuda, mode = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    cuda.cuInit(0)
    cuda.cuDeviceGetAttribute(ctypes.byref(mode), 20, 0)  # CU_DEVICE_ATTRIBUTE_COMPUTE_MODE
    return mode.value == 3  # CU_COMPUTEMODE_EXCLUSIVE_PROCESS


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tell a measured number at the end of the session: ``say("peak 1,234 MiB")``."""
    lines = request.config.stash.setdefault(_said, [])
    return lambda text: lines.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the tests have said."""
    device = torch.cuda.get_device_name() if ON_GPU and torch.cuda.is_available() else "a CPU in a GPU's place"
    for line in config.stash.get(_said, []):
        terminalreporter.write_line(f"measured on {device}: {line}")
