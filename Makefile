# Each target does everything it needs by itself: `make test` on a fresh machine with Python 3.11+ is enough.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test test-all check docs clean

# Two processes of one thread each: two of two threads would wait for each other most of the time.
# Pages that are tested in a browser leave their pictures in build/screenshots.
PYTEST := VISUS_SCREENSHOTS=$(CURDIR)/build/screenshots OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/visus train digits --model small --augment none --batch-size 50 --lr 0.05 --epochs 12

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/pytest tests/test_docs.py

test: check
	$(PYTEST) -m "not slow"

test-all: check
	$(PYTEST)

clean:
	rm -rf .venv
