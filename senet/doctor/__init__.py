"""``python -m senet.doctor``: are these hosts fit to train? Each rank measures its host, rank 0 compares and names the
one that is not."""
