"""Seeds, deterministic mode, and where a run came from."""

from __future__ import annotations

import os
import platform
import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from senet.data.draws import mix
from senet.rundir.commit import commit


def seed_everything(*keys: int) -> None:
    """Seed torch (CPU and CUDA), numpy and random from the keys; called for each (seed, step, rank)."""
    seed = mix(*keys)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():  # torch.manual_seed formats a stack for each absent kind of device
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # other people's networks draw from it
    random.seed(seed)


def set_deterministic(deterministic: bool) -> None:
    """Choose deterministic kernels, or the fastest ones; TF32 in either. Call before the first CUDA call."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # what NVSwitch adds up has no fixed order; torch itself excludes NVLS alone, but several nodes have NVLSTree
        os.environ.setdefault("NCCL_ALGO", "^NVLS,NVLSTree")
        # NaN-filling every new tensor costs time and guards against bugs we do not have
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # a network with an operation that has no deterministic form still trains; torch warns and names it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Command line, host, versions, git commit (with ``+`` where the checkout was changed)."""
    return {
        "argv": [sys.argv[0], *argv],
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "numpy": np.__version__,
        "commit": commit(),
    }
