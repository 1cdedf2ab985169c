# Every target sets up what it needs and is quick when there is nothing left to set up (scripts/setup.sh).
#   PYTHON=python3.12 make setup    takes that interpreter for a new .venv
#   make test ARGS="-k gro -x"      passes arguments on to pytest; likewise for demo, bench, gates, test-asan

PY := .venv/bin/python
ARGS ?=
# meson-python and cython-lint look for their helpers in PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench bench-quick wheel docs test-asan test-free-threaded gates api ebpf clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make .venv: the pinned tools and the package, editable
	@scripts/setup.sh

demo: ## two hosts on one machine: a pong server, a blaster, live rates (under 20 s)
	@scripts/setup.sh demo
	@$(PY) -m benchmarks demo $(ARGS)

test: ## run the tests
	@scripts/setup.sh test
	@$(PY) -m pytest $(ARGS)

lint: ## ruff, cython-lint, mypy, pyright, import rules, rules of this repository
	@scripts/setup.sh lint
	@scripts/lint.sh

bench-quick: ## the same, a single look at each: two minutes, and a page in benchmarks/results/quick.html
	@scripts/setup.sh bench
	@$(PY) -m benchmarks bench --quick $(ARGS)

bench: ## measure, compare with sockets, asyncio, other tools and C: 12 minutes, and a page in benchmarks/results/full.html
	@scripts/setup.sh bench
	@$(PY) -m benchmarks bench $(ARGS)

gates: ## count instructions per packet and compare with the committed baseline
	@scripts/setup.sh gates
	@$(PY) -m benchmarks gates $(ARGS)

wheel: ## build sdist and wheel into dist/, try the wheel in an empty environment
	@scripts/setup.sh wheel
	@rm -rf dist
	@git diff --quiet HEAD || echo "wheel: the sdist holds what is committed, without the changes of this tree"
	@PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(PY) -m build --quiet .
	@$(PY) scripts/wheel_smoke.py dist

docs: ## build the design book into build/site/
	@scripts/setup.sh docs
	@$(PY) -m mkdocs build --strict --quiet --site-dir build/site
	@echo "docs: build/site/index.html"

test-asan: ## run the conformance tests on a debug build with AddressSanitizer
	@scripts/setup.sh test-asan
	@scripts/asan.sh $(ARGS)

test-free-threaded: ## run the tests with the GIL off, where a free-threaded Python is found
	@scripts/free_threaded.sh $(ARGS)

api: ## write the list of public names again, after a wanted change
	@scripts/setup.sh api
	@$(PY) scripts/public_api.py --write

ebpf: ## compile the XDP program again after a change; ARGS=--check compares with what is committed
	@scripts/setup.sh ebpf
	@scripts/ebpf.sh $(ARGS)

clean: ## remove what was built, also .venv
	rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
