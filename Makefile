# Every verb makes the environment in .venv by itself. Written for GNU make 3.81 (macOS) and later.
VENV  = .venv
BIN   = $(VENV)/bin
READY = $(VENV)/.ready
OK    = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
ARGS  =
# Tests and notebooks run in so many processes of one thread each.
JOBS  = logical
# What PyTorch compiles stays with the environment.
TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/extensions
export TORCH_EXTENSIONS_DIR

# The first Python at hand that fits; `make PYTHON=/path/to/python3.12 ...` names another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c '$(OK)' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help env demo test versions test-gpu bench-gpu real lab run readme check export docs build clean
.DEFAULT_GOAL = help

help:
	@echo 'make demo      run the shipped models on the embedded test images; writes demo/'
	@echo 'make test      all notebooks and tests (ARGS=--fast leaves out what takes more than 20 s, JOBS=1 runs in one process)'
	@echo 'make versions  the fast tests with the oldest and the newest versions of everything that is declared (Python 3.10 and 3.13)'
	@echo 'make test-gpu  the tests and notebook cells that need a CUDA device'
	@echo 'make bench-gpu  every method against dense and fixed-rate models on CUDA, with profiles; writes benchmarks/speed_cuda.json'
	@echo 'make real      train on real images, ARGS="--images FOLDER" (all on a GPU; a reduced form without; ARGS="--help" says more)'
	@echo 'make lab       open the notebooks in JupyterLab'
	@echo 'make run       execute all notebooks, ARGS="nbs/models/04_model.ipynb" some, and store what they show'
	@echo 'make export    notebooks to modules and README.md, cleaned'
	@echo 'make readme    README.md from nbs/index.ipynb'
	@echo 'make check     fail if modules, notebooks and README.md do not agree, or a line is too long'
	@echo 'make docs      notebooks with their outputs, and the interface, as pages in docs/_build/html'
	@echo 'make build     wheel and source archive into dist/'
	@echo 'make clean     remove the environment and what the other verbs wrote'

env: $(READY)

$(READY): settings.ini setup.py
	@test -n '$(PYTHON)' || { echo 'Python 3.10 to 3.13 is needed and none was found on PATH: install one, or name it as in: make PYTHON=/path/to/python3.12 test' >&2; exit 1; }
	@'$(PYTHON)' -c '$(OK)' 2>/dev/null || { echo "Python 3.10 to 3.13 is needed; '$(PYTHON)' is `'$(PYTHON)' -c 'import platform; print(platform.python_version())' 2>/dev/null || echo not one that runs`. Name another, as in: make PYTHON=/path/to/python3.12 test" >&2; exit 1; }
	@echo 'Installing adaptive_tokens, torch and the development tools into $(VENV) with $(PYTHON): once, two to ten minutes, most of it the download of torch'
	@$(BIN)/python -c '$(OK)' >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/adaptive-tokens demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

versions: $(READY)
	$(BIN)/python -m nox $(ARGS)

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench-gpu: $(READY)
	$(BIN)/python tools/measure_speed.py --device cuda --dtype bfloat16 --budgets 0.65 0.5 --repeats 10 \
		--batch-sizes 1 256 1024 --compiled --fall-back $(ARGS)

real: $(READY)
	$(BIN)/python tools/train_real.py $(ARGS)

lab: $(READY)
	$(BIN)/jupyter lab nbs $(ARGS)

run: $(READY)
	$(BIN)/python tools/notebooks.py run $(ARGS)

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/python tools/notebooks.py check

# 'export' opening a line would be a directive of make: it comes last.
readme export: $(READY)
	$(BIN)/python tools/notebooks.py $@

docs: $(READY)
	rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d docs/_build/doctrees . docs/_build/html $(ARGS)

build: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) docs/_build build dist demo *.egg-info .pytest_cache .hypothesis .nox .ruff_cache
