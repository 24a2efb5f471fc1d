# make demo | test | test-all | lint | setup | clean
#
#   make PYTHON=python3.12       another Python (3.10 to 3.13) for .venv
#   make TORCH_INDEX=URL         an index that has builds of torch for the CPU only, or for another CUDA
#   make test ARGS='-k safety'   arguments for pytest
# pip's own configuration and PIP_* variables (index, constraints, proxy, certificates) are honoured.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_INDEX ?=
ARGS ?=
# two workers: one for the tests whose processes keep to the clock, one for the rest
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: demo test test-all lint setup clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6

demo: setup
	$(BIN)/robot-rl demo

test: setup
	$(PYTEST) -m "not slow" $(ARGS)

test-all: setup
	$(PYTEST) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "set-up: needs Python 3.10 to 3.13; choose one: make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m robot_rl.doctor download $(if $(TORCH_INDEX),--index '$(TORCH_INDEX)')
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') \
	  -e '.[sim,train,camera,plots,test]'
	@$(BIN)/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("dm_control") is None)' || \
	  $(PIP) install -c constraints.txt --no-deps dm-control
	@$(BIN)/python -m robot_rl.doctor system --install
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
