# One-word verbs. Everything happens inside .venv; nothing is installed elsewhere.
PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3,$(shell command -v $(p) 2>/dev/null)))
HOST ?= 127.0.0.1
PORT ?= 8080
BIN := .venv/bin

.PHONY: serve test check lint types imports docs unit contract numerics e2e clean

serve: .venv/.installed
	$(BIN)/visavis serve --host $(HOST) --port $(PORT)

test: .venv/.installed-dev
	$(MAKE) lint types imports docs
	$(BIN)/coverage run -m pytest -m "not e2e"
	$(BIN)/coverage report --skip-covered --precision 1 || true
	$(BIN)/pytest -m e2e

check: .venv/.installed-dev lint types imports docs unit

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: .venv/.installed-dev
	$(BIN)/mypy

imports: .venv/.installed-dev
	$(BIN)/lint-imports

docs: .venv/.installed-dev
	$(BIN)/pydoclint -q server pipeline tools

unit contract numerics e2e: .venv/.installed-dev
	$(BIN)/pytest -m $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "visavis needs Python 3.11 or 3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"visavis needs Python 3.11 or 3.12, {sys.executable} is {v[0]}.{v[1]}; choose one with make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,train]'
	@touch $@ .venv/.installed

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build artefacts *.egg-info
