# `make demo` and `make test` are all a stranger needs; the environment is made once and again only when its inputs change.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out
DEVICE ?= auto

.PHONY: demo test test-slow faults check lint types bench gate-proof scale clean
.DEFAULT_GOAL := help
.PHONY: help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %d.%d: call make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## the demo suite on this machine, report in out/demo/report.html
	$(BIN)/metagrad-bench run suite=demo device=$(DEVICE) output_dir=$(OUT)
	$(BIN)/metagrad-bench report $(OUT)/demo -o $(OUT)/demo

test: $(STAMP) ## the test suite, a few minutes
	$(BIN)/python -m pytest -m "not slow" -q -n auto --maxprocesses 8

test-slow: $(STAMP) ## what takes longer: wheel in an empty environment, browser, seeds
	$(BIN)/python -m pytest -m slow -q

faults: $(STAMP) ## the fault campaign: suites killed, disks filled, files damaged; half an hour; goes on where it was stopped
	$(BIN)/python -P -m tools.faults --folder $(OUT)/faults --json docs/faults/campaign.json --page docs/faults.md

check: lint types test ## lint, types and tests

lint: $(STAMP) ## ruff, lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	$(BIN)/mypy

bench: $(STAMP) ## the project's own benchmarks: the demo's cells timed against FP32, the integer engine, the hypernetwork's strategies
	$(BIN)/metagrad-bench run suite=demo suite_name=bench 'protocol.passes=[timing,memory]' fresh=true output_dir=$(OUT)
	$(BIN)/metagrad-bench report $(OUT)/bench -o $(OUT)/bench
	$(BIN)/metagrad-bench kernels --device $(DEVICE) --json $(OUT)/bench/kernels.json
	$(BIN)/metagrad-bench kernels --model mobilenet_v2 --dispatch auto --device $(DEVICE) --json $(OUT)/bench/kernels_mobilenet_v2.json
	$(BIN)/metagrad-bench hypernets --device $(DEVICE) --json $(OUT)/bench/hypernets.json

gate-proof: $(STAMP) ## what the regression gate is worth on this machine: docs/gate-proof.md, up to an hour; goes on where it was stopped
	$(BIN)/python -m tools.gate_proof

scale: $(STAMP) ## what 1,000, 10,000 and 100,000 cells cost around their measuring: docs/scale/scale.json, a quarter of an hour; goes on where it was stopped
	$(BIN)/python -m tools.scale --json docs/scale/scale.json --page docs/scale.md

clean: ## remove the environment, caches and what was measured
	rm -rf $(VENV) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
