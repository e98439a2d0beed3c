# What CI runs is `make test`.
PY := .venv/bin/python
unexport PYTHONDONTWRITEBYTECODE # each process that a test starts would compile the code anew

.PHONY: test quick setup lint types smoke faults hosts gpu slurm-soak pictures clean

test: lint types ## style, types, all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slurm and not hosts and not fault" -n 2 --dist worksteal
	$(PY) -m pytest -m fault -n 3 --dist worksteal -rs
	$(PY) -m pytest -m slurm -n 4 -rs

quick: setup ## the tests that start no processes and take no seconds: 100 s on 2 cores
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slurm and not hosts and not fault and not ranks and not slow" -n 2 --dist worksteal

setup:
	./launch.sh setup dev

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

smoke: ## the README's first command
	./launch.sh

faults: setup ## each fault of tests/faults many times (hours), and a table; tries that have passed are not repeated
	FAULTS=full $(PY) -m pytest tests/faults -q

hosts: setup ## two emulated hosts: power, links, clocks
	$(PY) -m pytest tests/hosts -rs

gpu: ## on a machine with a GPU, within 8 minutes (docs/gpu.md); elsewhere all is skipped, and a line says why
	./launch.sh setup gpu
	$(PY) -m pytest tests/gpu -rs

slurm-soak: setup ## the long forms of the tests on a SLURM cluster, one after another (about 20 minutes)
	SOAK=1 SLURM_TESTS=required $(PY) -m pytest -m slurm -v

pictures: setup ## of the README, from a real run (a few minutes; needs chromium); RUN=runs/mine: whose report is shown
	$(PY) -m docs.pictures.make $(RUN)

clean:
	rm -rf .venv .venv.lock .mypy_cache .pytest_cache .ruff_cache
