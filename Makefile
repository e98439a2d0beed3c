# What CI runs is `make test`.
PY := .venv/bin/python
unexport PYTHONDONTWRITEBYTECODE # each process that a test starts would compile the code anew

.PHONY: test quick test-oldest setup lint types smoke faults hosts hosts-soak gpu slurm-soak soak pictures clean

test: lint types ## style, types, all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slurm and not hosts and not fault" -n 2 --dist worksteal
	$(PY) -m pytest -m fault -n 3 --dist worksteal -rs
	$(PY) -m pytest -m slurm -n 4 -rs

quick: setup ## the tests that start no processes and take no seconds: 100 s on 2 cores
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slurm and not hosts and not fault and not ranks and not slow" -n 2 --dist worksteal

test-oldest: ## the same and a few with real ranks, on the oldest versions that pyproject.toml allows (.venv-oldest, 7 GB)
	$(or $(PYTHON),python3) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q uv
	.venv-oldest/bin/uv pip install -q --upgrade --python .venv-oldest --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -m "not slurm and not hosts and not fault and not ranks and not slow" -n 2 --dist worksteal
	.venv-oldest/bin/python -m pytest $(RANKS)

# collectives and their time limits, votes, stops, a resume, a compiled network; ranks that are lost or killed
RANKS := tests/test_groups.py tests/test_agreement.py tests/test_resume.py \
	"tests/test_shards_ranks.py::test_a_rank_that_is_lost_in_the_exchange_is_named" \
	"tests/test_shards_ranks.py::test_a_compiled_network_has_the_same_bits_on_one_and_two_ranks"

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
	SOAK=1 FAULTS=full $(PY) -m pytest tests/faults -q

hosts: setup ## two emulated hosts: power, links, clocks, a network file system, accounts (a quarter of an hour)
	$(PY) -m pytest tests/hosts -n 4 -rs

hosts-soak: setup ## each of them at least 5 times, and the long forms (hours); what has passed with the same commit is not repeated
	SOAK=1 HOSTS_TESTS=required $(PY) -m pytest tests/hosts -n 4 -v

gpu: ## on a machine with a GPU, within 8 minutes (docs/gpu.md); elsewhere all is skipped, and a line says why
	./launch.sh setup gpu
	$(PY) -m pytest tests/gpu -rs

slurm-soak: setup ## the long forms of the tests on a SLURM cluster, one after another (about 20 minutes)
	SOAK=1 SLURM_TESTS=required $(PY) -m pytest -m slurm -v

soak: setup ## tests that have long forms and need no cluster, with these: drills, bits, documents, views (an hour)
	SOAK=1 OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_drill_trainings.py tests/test_shards_ranks.py tests/test_document_commands.py \
		tests/test_views_kills.py -v

pictures: setup ## of the README, from a real run (a few minutes; needs chromium); RUN=runs/mine: whose report is shown
	$(PY) -m docs.pictures.make $(RUN)

clean:
	rm -rf .venv .venv-oldest .venv.lock .mypy_cache .pytest_cache .ruff_cache
