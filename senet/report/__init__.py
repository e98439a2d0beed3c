"""``python -m senet.report``: a page of figures and tables about one run or several."""
