"""The long forms of tests, which take minutes to hours: with SOAK=1 in the environment."""

from __future__ import annotations

import os

import pytest

SOAK = os.environ.get("SOAK", "0") not in ("", "0")
soak = pytest.mark.skipif(not SOAK, reason="a long form: SOAK=1")
