# What CI runs is `make test`.
PY := .venv/bin/python

.PHONY: test setup lint types smoke kill-soak slurm-soak clean

test: lint types ## style, types, all tests
	$(PY) -m pytest -m "not slurm"
	$(PY) -m pytest -m slurm -n 4 -rs

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

slurm-soak: setup ## the long forms of the tests on a SLURM cluster, one after another (about 20 minutes)
	SOAK=1 SLURM_TESTS=required $(PY) -m pytest -m slurm -v

clean:
	rm -rf .venv .venv.lock .mypy_cache .pytest_cache .ruff_cache
