"""``python -m senet.compare``: a table of the options that differ between runs against their results."""
