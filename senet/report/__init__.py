"""``python -m senet.report``: a page about one run or several."""
