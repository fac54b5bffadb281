# `make demo` and `make test` do all the set-up themselves.
SHELL := /bin/bash
PYTHON ?= python3
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint types proto bench clean
