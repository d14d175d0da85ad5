# Needs Python 3.10 or newer, git and make; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Most tests wait for a process that they have started.
WORKERS ?= $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))
# Compiled files make every run of pytest that the tests start a second faster.
unexport PYTHONDONTWRITEBYTECODE

# Folders of tests, type-checked one by one: each has a conftest, and some have helpers, of the same
# name as others.
ROOMS := core metering endpoints history reporting plugin cli emulator chaos faults browser \
	ecosystem real

.PHONY: demo test coverage lint docs picture ecosystem mutants clean

demo: $(VENV)/installed ## the whole product in a few seconds, at $0
	$(BIN)/hfbudget demo

test: $(VENV)/installed ## the tests
	$(BIN)/python -m pytest -n $(WORKERS)

# Python 3.12 and newer can tell coverage which lines ran at little cost.
coverage: $(VENV)/installed ## the tests, and which lines of the package they run
	COVERAGE_CORE=sysmon $(BIN)/python -m coverage run -m pytest -n $(WORKERS)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --fail-under 90

lint: $(VENV)/installed ## style, types, and the contract between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for room in $(ROOMS); do MYPYPATH=tests:tests/$$room $(BIN)/mypy tests/$$room || exit 1; done
	$(BIN)/lint-imports

docs: $(VENV)/installed ## the site, in build/docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

# They pin different releases of huggingface_hub, so each gets an environment of its own.
TOOLS := $(patsubst tests/ecosystem/suites/%.txt,%,$(wildcard tests/ecosystem/suites/*.txt))

picture: $(VENV)/installed ## the pictures of the documents, from runs; needs Chromium
	$(BIN)/python tests/plugin/readme_picture.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[browser]'
	$(BIN)/python tests/browser/report_pictures.py

ecosystem: $(TOOLS:%=ecosystem-%) ## tools on top of huggingface_hub; with -j2 two at a time

ecosystem-%:
	$(PYTHON) -m venv --without-pip $(VENV)/ecosystem/$*
	$(PYTHON) -m pip --python $(VENV)/ecosystem/$*/bin/python install --quiet \
		--disable-pip-version-check \
		-e '.[emulator,xdist]' pytest-timeout -r tests/ecosystem/suites/$*.txt
	ECOSYSTEM_TOOL=$* $(VENV)/ecosystem/$*/bin/python -m pytest -q -m ecosystem tests/ecosystem

mutants: $(VENV)/installed ## what the tests of the ledger would not notice; half an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'mutmut>=3.8,<4'
	$(BIN)/mutmut run
	$(BIN)/mutmut results

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
