"""What lies in a run directory, and who may write it."""
