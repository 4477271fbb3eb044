# make demo: train on this machine and look at the report.   make test, make check: what a change must pass.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet -c constraints.txt

.PHONY: demo test check format docs benchmarks clean

demo: $(VENV)/.base
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.check
	$(BIN)/mkdocs serve

benchmarks: $(VENV)/.base
	$(BIN)/python benchmarks/exchange.py
	$(BIN)/python benchmarks/selu.py
	$(BIN)/python benchmarks/selu.py --audit
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/page.py

clean:
	rm -rf $(VENV) site

# torch comes first and pinned: an unpinned range takes gigabytes of accelerator packages
$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) torch
	$(INSTALL) -e ".[report,examples,remote]"
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(INSTALL) -e ".[papers]" --group test
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(INSTALL) --group check --group docs
	touch $@
