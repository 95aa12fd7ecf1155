PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
EXTRAS := tensorboard,wandb,mp4,mpe2,pettingzoo,lbf,rware,vmas,mamujoco,magent,openspiel,export,tune,dev,docs

.PHONY: install demo test test-slow check format docs clean

install: $(VENV)/full  ## the virtual environment .venv with the package, its tools and its extras

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e .
	@touch $@

$(VENV)/full: $(VENV)/core
	$(PIP) -e ".[$(EXTRAS)]"
	@touch $@

demo: $(VENV)/core  ## train three agents on mpe/simple_spread (half a minute), evaluate them, draw their curve and a film
	rm -rf runs/demo
	$(BIN)/shoal train pqn_vdn mpe/simple_spread --out runs/demo
	$(BIN)/shoal eval runs/demo
	$(BIN)/shoal watch runs/demo --out runs/demo/film.gif
	@echo "curve: runs/demo/curves.png   film: runs/demo/film.gif"

test: $(VENV)/full  ## the fast test suite
	$(BIN)/pytest -n 2

test-slow: $(VENV)/full  ## the learning results, and failures of workers (half an hour and more)
	$(BIN)/pytest -m slow -n 2

check: $(VENV)/full  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_layers.py

format: $(VENV)/full
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/full  ## HTML pages in docs/_build
	$(BIN)/sphinx-build -W -q docs docs/_build

clean:
	rm -rf $(VENV) runs build dist docs/_build
