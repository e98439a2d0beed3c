"""Seeds and deterministic mode."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from senet.data.draws import mix


def seed_everything(*keys: int) -> None:
    """Seed torch (CPU and CUDA), numpy and random from the keys; called for each (seed, step, rank or shard)."""
    seed = mix(*keys)
    torch.default_generator.manual_seed(seed)
    if (
        torch.cuda.is_available()
    ):  # torch.manual_seed costs more: it formats a stack trace for each absent kind of device
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # networks of users may draw from it, and from random
    random.seed(seed)


def set_deterministic(deterministic: bool) -> None:
    """Choose deterministic kernels, or the fastest ones; TF32 in either. Call before the first CUDA call."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # sums made by NVSwitch have no fixed order; torch itself excludes only NVLS, but several nodes use NVLSTree
        os.environ.setdefault("NCCL_ALGO", "^NVLS,NVLSTree")
        # filling every new tensor with NaN costs time, and no code here reads what it has not written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # warn_only: an operation without a deterministic form still runs, and torch warns with its name
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
