# The entry points, few and fixed: adding a part never adds one. `make` alone lists them.
#
# Everything is made from nothing on a machine with Python 3.11+, a stable Rust toolchain and the package registries:
# two environments (`.venv` with torch, `.venv-core` without), both filled from uv.lock. Nothing is installed twice;
# the Rust code is built again whenever cargo sees a change, so a stale module is never tested.

SHELL := bash
MAKEFLAGS += --no-builtin-rules --no-print-directory
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .venv/bin/uv

# The model is a package: nothing is fetched at run time. An active environment of the user's own is left alone.
export HF_HUB_OFFLINE := 1
export UV_PYTHON_DOWNLOADS := never
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONPATH UV_PROJECT_ENVIRONMENT

# These test files need torch (and transformers, typer, rich); all others run without.
ADAPTER_TESTS := $(wildcard $(patsubst %,tests/python/test_%*.py,torch hf demo cli))
# A package of its own, outside the workspace.
CALIBRATE := --manifest-path benches/calibrate/Cargo.toml
PYTEST := bin/python -m pytest

.PHONY: help demo test test-core check bench evidence docs wheel build stubs format clean
.PHONY: check-rust check-python check-stubs check-docs check-deny test-rust test-adapters

help:  ## list these commands
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: build  ## exact memory in a real language model, end to end; writes report.html
	.venv/bin/mnemex demo $(ARGS)

test: check test-rust test-core test-adapters  ## every check and every test

test-core: .venv-core/.synced  ## the tests that need no torch, against the built wheel
	rm -rf target/wheels
	.venv-core/bin/maturin build --release --out target/wheels
	$(UV) pip install --python .venv-core --quiet --no-deps --reinstall target/wheels/*.whl
	.venv-core/$(PYTEST) tests/python $(addprefix --ignore=,$(ADAPTER_TESTS)) $(ARGS)

check: check-rust check-python check-stubs check-docs check-deny  ## formatting, lints, types, stubs, docs, licences

bench: build  ## measure against other engines; see benches/
	.venv/bin/python -m benches.run $(ARGS)

evidence: build  ## try claims of published systems on a real model; writes docs/evidence.md (ARGS=--quick: only that it runs)
	.venv/bin/python -m benches.evidence $(ARGS)

docs: .venv/.synced  ## the documentation site, in target/site
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --site-dir target/site

wheel: .venv-core/.synced  ## one wheel for CPython 3.11 and later, in dist/
	.venv-core/bin/maturin build --release --out dist

build: .venv/.synced  ## the package, editable, in .venv
	VIRTUAL_ENV=.venv .venv/bin/maturin develop --release --uv --quiet

stubs: build  ## write python/mnemex/_native.pyi anew from the built module
	.venv/bin/maturin generate-stubs --profile release --quiet --out python

format: .venv/.synced  ## format Rust and Python
	cargo fmt --all
	cargo fmt $(CALIBRATE)
	.venv/bin/ruff check --fix-only --quiet .
	.venv/bin/ruff format --quiet .

clean:  ## remove everything that was made, the environments too
	rm -rf target dist .venv .venv-core .hypothesis .pytest_cache .ruff_cache .mypy_cache python/mnemex/*.so
	find benches python tests -name __pycache__ -type d -prune -exec rm -rf {} +

check-rust:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --workspace --no-deps --document-private-items --locked --quiet
	cargo fmt $(CALIBRATE) --check
	cargo clippy $(CALIBRATE) --target-dir target/benches --all-targets --locked --quiet -- -D warnings
	cargo test --package mnemex-tests --locked --quiet tidy

check-python: .venv/.synced
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(UV) lock --check --quiet

# Two checks, since each sees what the other cannot: the committed stub is what the binary says of itself, and the
# running module has exactly the names and signatures of the stub.
check-stubs: build
	.venv/bin/maturin generate-stubs --profile release --quiet --out target/stubs
	diff -u python/mnemex/_native.pyi target/stubs/mnemex/_native.pyi || \
		{ echo 'python/mnemex/_native.pyi is not what the module says: run `make stubs` and commit the result'; exit 1; }
	.venv/bin/stubtest mnemex._native

check-docs: docs

check-deny:
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check bans licenses sources; \
	else echo 'cargo deny is not installed: licences and sources of the Rust dependencies were not checked'; fi

test-rust:
	cargo test --workspace --locked

test-adapters: build
	.venv/$(PYTEST) $(ADAPTER_TESTS) $(ARGS)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mnemex needs Python 3.11 or later: make PYTHON=python3.12")'
	@command -v cargo >/dev/null || { echo 'mnemex needs a stable Rust toolchain: cargo was not found'; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv==$(UV_VERSION)

.venv/.synced: pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen --no-install-project --all-extras --all-groups
	@touch $@

.venv-core/.synced: pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=.venv-core $(UV) sync --frozen --no-install-project --python .venv/bin/python --group test --group build
	@touch $@
