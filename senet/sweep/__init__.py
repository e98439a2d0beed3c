"""Sweeps: one training for each combination of some options, each an ordinary run."""
