PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all clean

# A teacher, a student alone and a distilled student on handwritten digits, through Ray Train.
quickstart: $(VENV)/ready
	$(BIN)/kdray train configs/quickstart.yaml --name quickstart-$$(date +%Y%m%d-%H%M%S)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What every change has to pass. `test-all` takes three times as long: before a release, and after a change of launch/.
test: $(VENV)/ready
	$(BIN)/ruff check .
	$(PYTEST) -m "not thorough"

test-all: $(VENV)/ready
	$(BIN)/ruff check .
	$(PYTEST)

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"kdray needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
