"""SENet18 and its kin, trained by DistributedDataParallel."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout."""
