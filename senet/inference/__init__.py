"""A trained network: opened, exported, scored."""
