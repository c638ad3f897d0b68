# make demo: train two methods on a bundled scene.  make test: everything CI runs.  make lab: open the notebooks.
VENV := .venv
# on Windows in the shell that comes with Git: python3 is only an advertisement there
ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := $(VENV)/Scripts
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

# threads that wait soon go to sleep: see nsw/__init__.py
export GOMP_SPINCOUNT ?= 3000

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test browser lint bench clean

help:
	@echo "make demo    install into .venv, train Gaussian splats and a voxel grid on a bundled scene, show the claim table"
	@echo "make lab     open JupyterLab on notebooks/00_start.ipynb"
	@echo "make test    run every test that CI runs (installs a browser if none is found)"
	@echo "make bench   measure speed against the committed figures (tests/bench)"
	@echo "make lint    check style"
	@echo "make clean   remove .venv, runs/ and board/"

setup: $(READY)

$(VENV)/.python:
	@$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
	  'NSW needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is %d.%d: run make again with PYTHON=python3.12' % v)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch goes first and alone: its pinned build must be chosen before anything else asks for a newer one
$(READY): $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing NSW into $(VENV): about two minutes, once."
	$(PIP) install -q $(TORCH)
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(READY_DEV): $(READY)
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/nsw run 03_gaussian_splatting 02_dvgo --preset laptop

# in a container one often is root, whom Jupyter wants to be asked for; the settings keep its question about news off the page
lab: $(READY)
	JUPYTER_CONFIG_PATH="$(CURDIR)/notebooks/.jupyter" $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start.ipynb

browser: $(READY_DEV)
	$(BIN)/python tests/browser/install.py

test: $(READY_DEV) browser
	$(BIN)/python -m ruff check nsw tests
	$(BIN)/python -m pytest

lint: $(READY_DEV)
	$(BIN)/python -m ruff check nsw tests
	$(BIN)/python -m ruff format --check nsw tests

bench: $(READY_DEV)
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) runs board
