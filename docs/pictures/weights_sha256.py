"""Prints a sha256 over all weights in the newest checkpoint of each run directory that is named."""

import hashlib
import sys
from pathlib import Path

import torch

for folder in sys.argv[1:]:
    newest = max(Path(folder, "checkpoints").glob("step_*.pt"))
    digest = hashlib.sha256()
    for name, weights in torch.load(newest, weights_only=True)["model"].items():
        digest.update(name.encode())
        digest.update(weights.contiguous().numpy().tobytes())
    print(digest.hexdigest(), folder)
