# make demo    the Alpaca notebook, headless, with a small real model; then base and tuned compared
# make test    all tests
# make quick   all but the slow ones
# make check   what CI runs: style, types, notebooks up to date, tests
# make readers exports, read by transformers and PEFT of several years
# make doctor  is this environment right?
# make release VERSION=1.2.3  set version, tag and badges everywhere; says which git commands remain
# make clean   remove the environment and what runs left behind

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
TORCH := torch==2.13.0
# Two workers, a file at a time each; in the files' own order, so that the longest does not come last; the
# plugin nbval, which takes a second to load, is for one test, which starts it in a process of its own.
TESTS := -n 2 --dist loadfile --no-loadscope-reorder -p no:nbval

# uv installs the same versions faster; it takes its indexes from the variables that pip reads, too. Like pip it compiles:
# compiled during the tests, where warnings are errors, torchao's strings would stop them.
UV := $(shell command -v uv 2>/dev/null)
FROM := $(if $(PIP_INDEX_URL),--index-url $(PIP_INDEX_URL)) $(foreach url,$(PIP_EXTRA_INDEX_URL),--extra-index-url $(url)) \
        $(foreach place,$(PIP_FIND_LINKS),--find-links $(place)) --index-strategy unsafe-best-match
# From / it does not see pyproject.toml, whose overrides, made for the lock, leave torch out.
INSTALL := $(if $(UV),$(UV) --directory / pip install -q --compile-bytecode --python "$(CURDIR)/$(RUN)" $(FROM),$(RUN) -m pip install -q)

.PHONY: demo test quick check readers doctor release clean

demo: $(VENV)/.installed
	$(RUN) -m helpers run alpaca_instruction --preset smoke --name demo --resume never
	$(RUN) -m helpers run side_by_side_eval --preset smoke --name demo-comparison --resume never -p adapter_dir=demo

test: $(VENV)/.installed
	$(RUN) -m pytest $(TESTS)

quick: $(VENV)/.installed
	$(RUN) -m pytest $(TESTS) -m "not slow"

check: $(VENV)/.installed
	scripts/check

readers: $(VENV)/.installed
	$(RUN) scripts/check_readers

doctor: $(VENV)/.installed
	$(RUN) -m helpers doctor

release:
	@$(or $(wildcard $(RUN)),$(PYTHON)) -m tools.release "$(VERSION)"

clean:
	rm -rf $(VENV) runs

# torch first, and kept if it is there; then the lock, exactly as it stands; then this package.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Python 3.11 to 3.13 is needed. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -c 'import torch' 2>/dev/null || { echo "Installing $(TORCH) …"; $(INSTALL) $(TORCH); }
	@echo "Installing the lock, requirements.txt …"
	@$(INSTALL) --no-deps -r "$(CURDIR)/requirements.txt"
	@$(INSTALL) --no-deps --no-build-isolation --editable "$(CURDIR)"
	@touch $@
