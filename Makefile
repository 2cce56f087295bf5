# make demo: environment, build, and the main job on view.   make test: environment, build, the whole suite.
# Everything lives in .venv and build/; PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard bus/*.pyx bus/*.pxd bus/*.hpp storage/*.pyx storage/*.pxi storage/*.hpp subscribers/*.pyx subscribers/*.hpp tools/bench/*.pyx tools/bench/*.hpp)
# Three more than processors, up to seven: the long files, which begin first, wait for elections most of their time.
WORKERS := $(shell n=$$(nproc); echo $$(( n < 4 ? n + 3 : 7 )))
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

.PHONY: demo test lint bench format clean system

demo: build/installed
	$(BIN)/ringmain demo

test: build/installed system
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

lint: build/installed build/face
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(BIN):$$PATH" cython-lint --max-line-length 140 bus/*.pyx storage/*.pyx subscribers/*.pyx tools/bench/*.pyx
	$(BIN)/pyright

bench: build/bench
	$(BIN)/ringmain bench all
	$(BIN)/ringmain bench store all

format: build/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build *.egg-info bus/*.cpp storage/*.cpp subscribers/*.cpp bus/*.so storage/*.so subscribers/*.so tools/bench/*.cpp tools/bench/*.so

# What the suite needs beyond Python: spin checks the models in tests/model, chromium is a client of the gateway. Tests skip, and
# say so, where they cannot be had.
system:
	@command -v spin >/dev/null || { echo "installing spin"; \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq spin; } >/dev/null 2>&1 || \
	  echo "spin could not be installed: the model tests will be skipped"; }
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { echo "installing chromium"; \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 || \
	  echo "chromium could not be installed: the browser tests will be skipped"; }

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ringmain needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

build/installed: $(SOURCES) | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@mkdir -p build && touch $@

build/bench: build/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

# The packages under their importable names, for the type checker.
build/face:
	@mkdir -p build/face/ringmain
	@for room in bus storage subscribers tools; do ln -sfn ../../../$$room build/face/ringmain/$$room; done
