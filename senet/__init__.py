"""SENet18 and other networks with squeeze-and-excitation gates, trained with DistributedDataParallel."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout."""
