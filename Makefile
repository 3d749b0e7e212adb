# Two commands: `make demo` runs the main job, `make test` the checks and tests. Both make .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/csrc/*)

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(BIN)/ptmst demo $(ARGS)

test: check
	$(BIN)/pytest $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types/ptmst
	ln -s $(CURDIR)/ptmst/* build/types/ptmst/ && ln -s $(CURDIR)/kernels build/types/ptmst/kernels
	$(BIN)/mypy build/types/ptmst tests bench

$(VENV)/.installed: $(BUILD_INPUTS) | $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(BUILD_INPUTS) | $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python: expected 3.11 or newer, found $$($(PYTHON) --version); run make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and what else is needed, several GB: this takes a few minutes, once"

clean:
	rm -rf build $(VENV)
