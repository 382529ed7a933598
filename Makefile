# Python 3.11 or later and a package index are all that is needed.
PYTHON ?= python3
# The CPU build of torch where pip would take a CUDA one: make TORCH=torch==2.13.0
TORCH ?= torch==2.13.0

.PHONY: demo test check docs bench clean

.venv/done: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade pip
	.venv/bin/pip install --quiet $(TORCH)
	.venv/bin/pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/done  ## the main job on synthetic spoken commands: table, plots, model card in demo/
	.venv/bin/sounding demo --out demo

test: .venv/done check  ## all tests; those that need shared data or weights are skipped without them
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --dist loadfile

check: .venv/done docs
	.venv/bin/ruff check src tests benchmarks examples docs/hooks.py
	.venv/bin/ruff format --check src tests benchmarks examples docs/hooks.py
	.venv/bin/mypy

docs: .venv/done  ## the site, in build/site; needs no network. To read it: .venv/bin/mkdocs serve
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --site-dir build/site

bench: .venv/done  ## paired timings of the executor; of exported models: benchmarks/runtime.py
	.venv/bin/python benchmarks/timing.py --backbone whisper-base --seconds 3 --json benchmarks/results/timing.json

clean:
	rm -rf .venv demo build dist src/*.egg-info
