# Every target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-faults lint docs audit clean

demo: .venv/installed
	$(BIN)/ldae demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# What `make test` leaves out: longer runs, more cases of what it proves in a smaller form.
test-slow: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

# All faults of tests/faults, the long ones too: half an hour on two cores; the table goes to results/faults.json.
test-faults: .venv/installed
	LDAE_FAULTS=results/faults.json $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests -m case

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site of docs/, in site/; --strict: a warning is an error.
docs: .venv/installed
	$(BIN)/mkdocs build --strict
	@echo 'To read it: python -m http.server --directory site'

# What is installed fits together, and the versions of constraints.txt have no known vulnerability (asks pypi.org).
audit: .venv/installed
	$(BIN)/python -m pip check
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

# Torch's CPU or CUDA build, whichever pip finds for this machine.
.venv/installed: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
