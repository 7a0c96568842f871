# One-word verbs. Everything happens inside .venv; nothing is installed elsewhere.
RIGHT_PYTHON := import sys; v = sys.version_info[:2]; sys.exit(v not in ((3, 11), (3, 12)))
# The first that runs and is of a version that fits: a name on the PATH may be a launcher for one that is not installed.
PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3 python,$(shell $(p) -c '$(RIGHT_PYTHON)' >/dev/null 2>&1 && echo $(p))))
HOST ?= 127.0.0.1
PORT ?= 8080
BIN := .venv/bin
INSTALL := install --quiet --disable-pip-version-check

.PHONY: serve test check lint types imports docs unit contract numerics e2e lock clean

serve: .venv/.installed
	$(BIN)/visavis serve --host $(HOST) --port $(PORT)

test: .venv/.installed-dev
	$(MAKE) lint types imports docs
	$(BIN)/coverage run -m pytest -m "not e2e"
	$(BIN)/coverage report --skip-covered --precision 1
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
	@test -n "$(PYTHON)" || { echo "visavis needs Python 3.11 or 3.12; none is on the PATH: make PYTHON=... names one"; exit 1; }
	@$(PYTHON) -c '$(RIGHT_PYTHON)' || { echo "visavis needs Python 3.11 or 3.12, and $(PYTHON) is neither"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip $(INSTALL) --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip $(INSTALL) --constraint constraints.txt --editable '.[dev,large,train]'
	@touch $@ .venv/.installed

# The newest of everything that pyproject.toml allows. A local suffix (torch's `+cpu`) would bind it to one build.
lock:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder" && \
	"$$folder/bin/pip" $(INSTALL) --editable '.[dev,large,train]' && \
	"$$folder/bin/pip" freeze --exclude visavis >"$$folder/versions" && \
	{ echo '# What everything is tested with; `make lock` renews it.'; sed 's/+.*//' "$$folder/versions"; } >constraints.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build artefacts *.egg-info
