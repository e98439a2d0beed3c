"""Which device a rank computes on."""

from __future__ import annotations

import os

import torch

from senet.config import ConfigError


def choose_device(wanted: str, local_rank: int, local_world_size: int) -> torch.device:
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and gpus == 0:
        raise ConfigError("train.device=cuda, but no GPU is visible; set train.device=cpu or auto")
    if gpus == 0:
        return torch.device("cpu")
    # one visible device: the launcher gave each rank its own (SLURM); several: all ranks see all (torchrun)
    if 1 < gpus < local_world_size:
        raise ConfigError(f"{local_world_size} ranks on this node share {gpus} GPUs; start at most {gpus}")
    if gpus == 1 and local_world_size > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(f"{local_world_size} ranks on this node share 1 GPU; start 1, or set train.device=cpu")
    return torch.device("cuda", local_rank if gpus > 1 else 0)
