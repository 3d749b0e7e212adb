# Two commands: `make demo` runs the main job, `make test` the checks and tests. Both make .venv first.
# `make quick` runs lint, types and the quick tests; `make slow` what does not fit into `make test`.
# `make test-oldest` runs the tests on the oldest versions that pyproject.toml allows, in .venv-oldest.
# `make bench-quick` measures what users wait for, and names what became slower than the committed file.
# `make wheel` puts what is published into dist: a wheel that older systems load too, and the sources for all others.
# `make release` runs every check of a release in order (CONTRIBUTING.md).
# `make bundle PYTHON=3.12` makes the wheels that a machine without a network lacks, for its Python.

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BUNDLE ?= dist/bundle
BIN := $(VENV)/bin
AT_ONCE := --numprocesses 2 --dist worksteal
BUILD_INPUTS := pyproject.toml $(wildcard constraints*.txt) CMakeLists.txt $(wildcard kernels/csrc/*)

.PHONY: demo test quick slow test-oldest check bench-quick wheel release bundle clean

demo: $(VENV)/.installed
	$(BIN)/ptmst demo $(ARGS)

test: check
	$(BIN)/pytest $(AT_ONCE) $(ARGS)

quick: check
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m "not slow and not exhaustive" $(ARGS)

slow: $(VENV)/.installed-dev
	$(BIN)/pytest $(AT_ONCE) -m exhaustive --timeout 1800 $(ARGS)

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pytest $(AT_ONCE) $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types/ptmst
	ln -s $(CURDIR)/ptmst/* build/types/ptmst/ && ln -s $(CURDIR)/kernels/python/kernels build/types/ptmst/kernels
	$(BIN)/mypy build/types/ptmst tests bench

bench-quick: $(VENV)/.installed-dev
	mkdir -p build
	$(BIN)/python -m bench.waits --json build/waits.json
	$(BIN)/python -m bench.slower bench/results/waits-cpu.json build/waits.json

SDIST := import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))
wheel: $(VENV)/.installed-dev
	rm -rf dist/ptmst-* build/wheel
	$(BIN)/python -c '$(SDIST)' dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel dist/ptmst-*.tar.gz
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --plat manylinux2014_x86_64 --exclude libgomp.so.1 \
	  --wheel-dir dist build/wheel/*.whl
	ls dist

release: test slow test-oldest wheel
	$(BIN)/python -m bench.api && $(BIN)/python -m bench.readme
	@git diff --quiet && test -z "$$(git status --porcelain)" || \
	  { echo "release: expected a clean checkout whose tables are those of its results, found changes" >&2; exit 2; }
	@! grep -q 'not released yet' CHANGELOG.md || \
	  { echo "release: expected the date of this release in CHANGELOG.md, found that it is not released yet" >&2; exit 2; }
	rm -rf build/release && $(PYTHON) -m venv build/release
	build/release/bin/pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[demo]"
	cd build/release && bin/ptmst doctor && bin/ptmst demo --quick
	@echo "build/release/runs/demo-quick/report.html is to be looked at; then tag v$$(build/release/bin/python -c 'import ptmst; print(ptmst.__version__)')"

PLATFORMS := $(foreach glibc,2_28 2_27 2_17,manylinux_$(glibc)_x86_64) manylinux2014_x86_64
bundle:
	@case "$(PYTHON)" in 3.11|3.12) ;; *) \
	  echo "make bundle: expected the other machine's Python, as PYTHON=3.12, found $(PYTHON)" >&2; exit 2;; esac
	rm -rf $(BUNDLE) build/pip && python3 -m venv build/pip
	build/pip/bin/pip download --quiet --no-deps --only-binary=:all: --python-version $(PYTHON) --implementation cp \
	  $(addprefix --platform ,$(PLATFORMS)) --constraint constraints.txt --requirement bundle.txt --dest $(BUNDLE)
	build/pip/bin/pip wheel --quiet --no-deps --wheel-dir $(BUNDLE) .
	ls $(BUNDLE)

CONSTRAINTS := constraints.txt
$(VENV)/.installed: EXTRAS := [demo]
$(VENV)/.installed-dev: EXTRAS := [dev]
$(OLDEST)/.installed: CONSTRAINTS := constraints-oldest.txt
$(OLDEST)/.installed: EXTRAS := [drawings,hf,tensorboard,test,wandb,wds]

$(VENV)/.installed $(VENV)/.installed-dev: | $(VENV)
$(OLDEST)/.installed: | $(OLDEST)
$(VENV)/.installed $(VENV)/.installed-dev $(OLDEST)/.installed: $(BUILD_INPUTS)
	$(@D)/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.$(EXTRAS)'
	touch $@ $(@D)/.installed

$(VENV) $(OLDEST):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "python: expected 3.11 or 3.12, found $$($(PYTHON) --version); run make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $@
	@echo "installing torch and what else is needed, several GB: this takes a few minutes, once"

clean:
	rm -rf build $(BUNDLE) $(VENV) $(OLDEST)
