# One menu. `make demo` and `make test` need only Python >= 3.11, make and the package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?=
DEMO_OUT ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help setup setup-torch sglang-env demo test test-sglang test-sglang-here test-live check \
	bench bench-engines bench-schedule golden clean

help:
	@echo "make demo [MODEL=smollm2-135m-instruct]   two workflows, one merged batch, real documents"
	@echo "make test                                 the default tests"
	@echo "make test-sglang [SGLANG_VERSION=0.5.23]  the engine tests on a real SGLang server (on the CPU)"
	@echo "make test-live                            tests with real models (downloads them)"
	@echo "make check                                format, lint, types, import contracts"
	@echo "make bench                                benchmarks, JSON out"
	@echo "make bench-schedule                       the scheduler's figures and their page (an hour)"
	@echo "make bench-engines                        the torch engine beside other engines"
	@echo "make golden                               rewrite golden files"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Halo needs Python 3.11 or later; set PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[local]' --group dev
	@touch $@

# Tests and checks also cover the torch engine, which a demonstration does not need: on Linux the
# package index has torch built for CUDA, 3 GB.
$(VENV)/.installed-torch: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[torch]' --group reference
	@touch $@

# SGLang in an environment of its own, for its CPU server: it pins torch and much else. Python writes
# the bytecode of what is used, a fraction of what pip would compile.
SGLANG_VERSION ?= 0.5.17
SGLANG_VENV ?= .venv-sglang$(if $(filter-out 0.5.17,$(SGLANG_VERSION)),-$(SGLANG_VERSION))
SGLANG_BIN := $(SGLANG_VENV)/bin
SGLANG_TESTS := tests/runtime/backends
SGLANG_PIP := $(SGLANG_BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
$(SGLANG_VENV)/.installed: $(wildcard $(SGLANG_TESTS)/sglang_requirements/*.txt)
	$(PYTHON) -m venv $(SGLANG_VENV)
	$(SGLANG_PIP) torch==2.13.0
	$(SGLANG_PIP) --no-deps sglang==$(SGLANG_VERSION) torchvision==0.28.0
	$(SGLANG_PIP) -r $(SGLANG_TESTS)/sglang_requirements/$(SGLANG_VERSION).txt
	@touch $@

sglang-env: $(SGLANG_VENV)/.installed

setup: $(VENV)/.installed

setup-torch: $(VENV)/.installed-torch

demo: setup
	$(BIN)/halo-bench demo --out $(DEMO_OUT) $(if $(MODEL),--model $(MODEL))

test: setup-torch
	$(BIN)/python -m pytest -q

# The real SGLang server on the CPU, with a 135M model. Where it cannot run, it says why and succeeds.
test-sglang: setup-torch
	@$(BIN)/python $(SGLANG_TESTS)/sglang_machine.py; case $$? in \
		0) $(MAKE) --no-print-directory test-sglang-here ;; 3) ;; *) exit 1 ;; esac

test-sglang-here: setup-torch sglang-env
	HALO_SGLANG_PYTHON=$(abspath $(SGLANG_BIN))/python $(BIN)/python -m pytest -q -rs -m live -k sglang \
		--durations=5 $(SGLANG_TESTS)/test_conformance.py $(SGLANG_TESTS)/test_sglang_live.py

test-live: setup-torch sglang-env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group live
	HALO_SGLANG_PYTHON=$(abspath $(SGLANG_BIN))/python $(BIN)/python -m pytest -q -m live

check: setup-torch
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: setup
	$(BIN)/halo-bench overhead merge planner

bench-schedule: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[oracle]'
	for name in simulator schedule-planning schedule-anytime schedule-shapes schedule-gap; do \
		$(BIN)/python -m workloads.schedule_bench $$name --out docs/benchmarks/scheduler-$${name#schedule-}.json > /dev/null || exit 1; \
	done
	$(BIN)/python -m workloads.schedule_report docs/benchmarks/scheduler-*.json -o docs/benchmarks/scheduler.md

# The torch engine beside OpenVINO and transformers; PYTHONS names environments with other engines,
# such as PYTHONS="--python vllm=/opt/vllm/bin/python".
bench-engines: setup-torch
	$(BIN)/python -m workloads.torch_bench $(PYTHONS)

golden: setup
	$(BIN)/python -m pytest -q --golden

clean:
	rm -rf $(VENV) dist runs
