# make report   a first page, from a fresh clone
# make test     everything that checks itself
# make help     the rest

VENV    ?= .venv
PYTHON  ?= python3
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

bin   := $(VENV)/bin
stamp := $(VENV)/.installed
page  := build/report/wann.html
wraps := $(VENV)/share/jupyter/lab/settings/overrides.d/noisynb.json

.DEFAULT_GOAL := help
.PHONY: help report lab test test-slow test-browser benchmarks docs book lock clean

help:
	@echo 'make report      train WANN on wrong labels and write the page about it'
	@echo 'make lab         read the book in JupyterLab'
	@echo 'make test        run every notebook, but for its slow cells, and the test suite'
	@echo 'make test-slow   run the slow cells, too (hours)'
	@echo 'make test-browser  drive JupyterLab and read the pages in Chromium (wants chromium and chromedriver, and npm for axe-core)'
	@echo 'make benchmarks  measure speed, memory, peers and audits again (wants a quiet machine, and for the audits their data)'
	@echo 'make docs        write README.md from nbs/index.ipynb'
	@echo 'make book        print all notebooks, the reference and the reports as pages into _book'
	@echo 'make lock        refresh constraints.txt after a change in pyproject.toml'
	@echo 'make clean       remove caches and build products ($(VENV) stays)'
	@echo 'Variables: PYTHON=$(PYTHON) (3.11 or newer), VENV=$(VENV), WORKERS=$(WORKERS)'

# The environment is made once and again when what it is made from changes.
$(stamp): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "noisynb needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo 'Installing the locked set into $(VENV); this happens once and takes a few minutes.'
	@test -x $(bin)/pip || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

# In the JupyterLab of this environment a line of code wider than its cell goes on in the next line, so no cell scrolls sideways.
$(wraps): | $(stamp)
	@mkdir -p $(@D)
	@echo '{"@jupyterlab/notebook-extension:tracker": {"codeCellConfig": {"lineWrap": true}}}' > $@

lab: $(stamp) $(wraps)
	$(bin)/jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb

report: $(page) | $(wraps)
	@echo 'Open $(page); its numbers are in $(notdir $(page:.html=.json)) beside it.'

$(page): $(stamp) nbs/run_method.ipynb $(wildcard noisynb/*.py noisynb/*/*.py noisynb/*/*/*.py noisynb/templates/report/*)
	$(bin)/noisynb run wann -p dataset digits -p noise_type instance -p noise_rate 0.4 -p seed 0 -o $(page:.html=.ipynb)

# One thread per worker: the workers are forked from a parent that ran nothing parallel, and share the cores.
test: $(stamp) | $(wraps)
	OMP_NUM_THREADS=1 $(bin)/nbdev_test --n_workers $(WORKERS)
	$(bin)/python -m pytest

test-slow: $(stamp)
	OMP_NUM_THREADS=1 $(bin)/nbdev_test --flags slow --n_workers 1

# What a browser needs beyond the system's Chromium lies in the environment. What is missing is said, and its tests are skipped.
test-browser: $(stamp) | $(wraps)
	@$(bin)/python -c 'import selenium' 2>/dev/null || $(bin)/python -m pip install --quiet --disable-pip-version-check -e '.[browser]' -c constraints.txt
	@test -n "$$NOISYNB_AXE" -o -e $(VENV)/axe/node_modules/axe-core || npm install --silent --no-audit --no-fund --prefix $(VENV)/axe axe-core@4 || true
	NOISYNB_BROWSER=1 $(bin)/python -m pytest -rs tests/test_browser.py

benchmarks: $(stamp)
	$(bin)/python -m pip install --quiet --disable-pip-version-check -e '.[compare]' -c constraints.txt
	$(bin)/jupyter execute --inplace --timeout=-1 nbs/90_appendix/benchmarks*.ipynb; status=$$?; $(bin)/nbdev_clean; exit $$status

docs: $(stamp)
	$(bin)/noisynb readme

book: $(stamp)
	@$(bin)/python -c "from noisynb.reports.book import book, dead_links; print('Open', book()); dead = dead_links('_book'); print(*dead, sep=chr(10)); raise SystemExit(bool(dead))"

lock:
	@test -x $(bin)/pip || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet uv
	$(bin)/uv pip compile --quiet --universal --all-extras --python-version 3.11 --no-header --no-annotate pyproject.toml -o constraints.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis _proc _docs _book
	find nbs noisynb tests -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
