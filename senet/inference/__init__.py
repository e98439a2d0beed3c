"""Trained networks: opened, exported, scored on the test images."""
