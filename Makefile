# What CI runs is `make test`.
PY := .venv/bin/python

.PHONY: test setup lint types smoke kill-soak clean

test: lint types ## style, types, all tests
	$(PY) -m pytest

setup:
	./launch.sh setup dev

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

smoke: ## the README's first command
	./launch.sh

kill-soak: setup ## 10 random SIGKILLs for 1, 2 and 4 ranks, each resumed and compared bit for bit
	KILLS=10 $(PY) -m pytest tests/test_resume.py -k sigkill

clean:
	rm -rf .venv .venv.lock .mypy_cache .pytest_cache .ruff_cache
