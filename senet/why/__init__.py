"""Why a run has ended, or does not move: one cause, its evidence, the remedy. Pure but for ``evidence``; no torch."""
