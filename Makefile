# `make demo` and `make test` do all the set-up themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup tiny demo test test-slow lint types proto bench clean

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := .venv/.installed
TYPES := mimicmotion_trt-stubs
TINY := runtime/bundles/tiny
MODEL := training/models/tiny
INSTALL = $(PIP) install -q -c constraints.txt -e '.[export,train,dev]'

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# Python finds the rooms of an editable install through a hook that type checkers do not run. For them they lie, linked,
# in a stub package; its first module has to be a .pyi for mypy. The links follow what is there at each `make setup`.
setup: $(STAMP) ## make .venv with all that demo, export, training and tests need
	@cd $$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && rm -rf $(TYPES) && mkdir $(TYPES) \
	  && ln -s $(CURDIR)/runtime/* $(CURDIR)/engines $(CURDIR)/export $(CURDIR)/training $(TYPES)/ \
	  && mv $(TYPES)/__init__.py $(TYPES)/__init__.pyi

$(STAMP): pyproject.toml constraints.txt
	@test -x $(PY) || { echo "setting up .venv; this takes a minute or two"; $(PYTHON) -m venv .venv; }
	@for wait in 5 10 20 0; do $(INSTALL) && exit 0; echo "retrying in $$wait s" >&2; sleep $$wait; done; exit 1
	@touch $@

tiny: $(STAMP) ## build the shipped bundle anew from its checkpoint (a no-op when it is that one's)
	@$(PY) export/build_engines.py --base $(MODEL)/base --checkpoint $(MODEL)/mimicmotion.safetensors \
	  --output $(TINY) --note "a small model that knows drawn people only: a photograph comes out unlike itself"

demo: setup ## animate a picture through a real server: demo/out.mp4 and demo/sheet.png
	@$(PY) demo/demo.py

test: setup ## all tests but the slow ones
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow" --durations=20 --durations-min=4

test-slow: setup ## the tests that take minutes
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m slow --timeout 1800

lint: $(STAMP) ## ruff, the import contracts, the schema's lint
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .
	@$(PY) tests/contracts/lint_imports.py
	@.venv/bin/buf lint proto

# The rooms lie side by side in the repository and nested in the package; mypy sees them as the package.
types: $(STAMP) ## mypy --strict
	@rm -rf build/types && mkdir -p build/types/mimicmotion_trt
	@ln -s $(CURDIR)/runtime/* $(CURDIR)/engines $(CURDIR)/export $(CURDIR)/training build/types/mimicmotion_trt/
	@cd build/types && ../../.venv/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p mimicmotion_trt
	@MYPYPATH=build/types:benchmarks .venv/bin/mypy benchmarks/*.py demo/*.py

proto: $(STAMP) ## generate the gRPC stubs from the schema
	@$(PY) proto/generate.py

bench: setup ## per-stage latency, against the plain PyTorch loop
	@$(PY) benchmarks/latency.py --compare torch

clean: ## remove what was built, not .venv
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
