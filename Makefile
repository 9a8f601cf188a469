# How is this project built and tested? `make demo` and `make test` install everything that they
# need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

CARGO_DENY_VERSION := 0.20.2
FUZZ_SECONDS ?= 30
CARGO_FUZZ_VERSION := 0.13.2
CARGO_DENY := target/tools/bin/cargo-deny
CARGO_FUZZ := target/tools/bin/cargo-fuzz
export PATH := $(CURDIR)/target/tools/bin:$(PATH)
packages := tests/clients/debian-packages

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup ## Show logins to stand-ins for RDS and Redshift; KEEP=1 keeps them up
	cargo build --workspace --bins
	KEEP=$(KEEP) deploy/demo

.PHONY: test
test: setup venv lint ## Run the lints and all tests
	cargo test --workspace

.PHONY: build
build: setup ## Build the release binary, target/release/pg-iam-proxy
	cargo build --release

.PHONY: clients
clients: setup ## Run real clients against both flavours; QUICK=1 shortens pgbench, CLIENTS=psql takes one
	@$(packages) python3:python3
	cargo build --workspace --bins
	tests/clients/run $(CLIENTS)

.PHONY: interop
interop: setup ## Run GnuTLS, OpenSSL, NSS and Java's TLS against the record layer
	@$(packages) python3:python3 '/usr/lib/*/libgnutls.so.30:libgnutls30' '/usr/lib/*/libssl.so.3:libssl3' tstclnt:libnss3-tools java:default-jre-headless javac:default-jdk-headless
	cargo build --workspace --bins
	tests/interop/run

.PHONY: bench
bench: setup ## Measure us and our peers in one run; QUICK=1, ONLY=bulk and more: docs/performance.md
	@$(packages) /usr/sbin/pgbouncer:pgbouncer /usr/sbin/haproxy:haproxy /usr/sbin/nginx:nginx libnginx-mod-stream stunnel4:stunnel4 pgbench:postgresql-contrib
	$(if $(PROXY),,cargo build --release --bin pg-iam-proxy)
	cargo build --release --package bench
	@$${CARGO_TARGET_DIR:-target}/release/bench

.PHONY: soak
soak: setup ## Use one proxy in every way at once for SOAK_SECONDS (1800), with faults
	$(if $(PROXY),,cargo build --release --bin pg-iam-proxy)
	cargo build --release --package soak
	@$${CARGO_TARGET_DIR:-target}/release/soak

.PHONY: fuzz
fuzz: $(CARGO_FUZZ) ## Run each fuzz target for FUZZ_SECONDS (30), on nightly Rust
	@cargo +nightly --version >/dev/null 2>&1 || { echo 'nightly Rust is missing: rustup toolchain install nightly --profile minimal' >&2; exit 1; }
	for target in $$(cargo +nightly fuzz list --fuzz-dir tests/fuzz); do \
	    mkdir -p tests/fuzz/corpus/$$target; \
	    cargo +nightly fuzz run --fuzz-dir tests/fuzz $$target \
	        tests/fuzz/corpus/$$target tests/fuzz/seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=10; \
	done

.PHONY: lint
lint: $(CARGO_DENY) ## Check formatting, clippy, documentation and dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --document-private-items
	$(CARGO_DENY) check bans licenses sources
	cargo metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null

# This is not a lint, because it fetches the advisory database, and fails for reasons that no change
# here has caused.
.PHONY: advisories
advisories: $(CARGO_DENY) ## Look for known vulnerabilities in dependencies (needs the network)
	$(CARGO_DENY) check advisories

.PHONY: setup
setup: ## Install what PostgreSQL, the build and the tests need, where it is missing
	@command -v cargo >/dev/null || { echo 'cargo is missing: install Rust from https://rustup.rs' >&2; exit 1; }
	@$(packages) cc:gcc /usr/include/*/gnu/libc-version.h:libc6-dev '/usr/lib/postgresql/*/bin/postgres:postgresql' psql:postgresql-client openssl:openssl \
	    '/usr/lib/*/faketime/libfaketimeMT.so.1:libfaketime' '/usr/lib/*/libnss_wrapper.so:libnss-wrapper'

.PHONY: venv
venv: target/venv/.done ## Install the Python packages that the tests use, in target/venv

target/venv/.done: tests/clients/requirements-test.txt
	@python3 -c 'import ensurepip, venv' 2>/dev/null || $(packages) python3 python3-venv
	python3 -m venv target/venv
	target/venv/bin/python -m pip install --quiet --requirement $<
	touch $@

$(CARGO_DENY): version := $(CARGO_DENY_VERSION)
$(CARGO_FUZZ): version := $(CARGO_FUZZ_VERSION)
# They have a build directory of their own, so that building them neither waits for ours nor spoils
# it.
$(CARGO_DENY) $(CARGO_FUZZ): Makefile
	[[ "$$($@ --version 2>/dev/null)" == "$(@F) $(version)" ]] || \
	    cargo install --locked --debug --version $(version) --root target/tools --target-dir target/tools/build $(@F)
	rm -rf target/tools/build
	touch $@
