"""Random changes of whole batches, on their device; draws are those of ``senet.data.keys``."""
