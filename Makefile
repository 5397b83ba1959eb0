# What people do with this project. `make` alone lists it.

.DEFAULT_GOAL := help
.PHONY: help demo install check test test-matrix properties simulate chaos failover memory fmt lint advisories sbom packages

help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

# The dev profile: a cold release build takes three times as long, and no one waits for the demo.
demo: ## Run the monitor with a simulated fleet; installs missing packages; Ctrl-C stops everything
	@scripts/install-packages demo
	@cargo run --locked -- demo

PREFIX ?= /usr/local
install: ## Build for release and install the program into PREFIX (/usr/local)
	@scripts/install-packages build
	@cargo install --locked --force --no-track --path . --bin shepherd-monitor --root "$(PREFIX)"

# The modules that decide: no server, no clock.
PURE = contract:: fleet:: history:: alerting:: exposition:: pages:: access::

check: ## Check format and lints of the library, and run the unit tests of the pure modules
	@cargo fmt --check
	@cargo clippy --locked --lib -- -D warnings
	@cargo test --locked --quiet --lib -- $(PURE)

test: ## Run all tests; installs missing packages
	@scripts/install-packages test
	@scripts/test

test-matrix: ## Run the tests on Redis 7.0, 8.0, 8.2, Valkey 9, Postgres 17, 18 and another PgBouncer
	@scripts/install-packages test
	@scripts/test-matrix

CASES ?= 50000
properties: ## Run the property tests of fleet and alerts with CASES (50,000) random cases each
	@PROPTEST_CASES=$(CASES) cargo test --locked --lib propert

STEPS ?= 100000000
# Compiling takes some minutes longer; the steps are several times faster.
OPTIMIZED = --config 'profile.dev.package.shepherd-monitor.opt-level=2'

simulate: ## Run the simulation for STEPS (100 million); docs/reliability.md
	@SIMULATION_STEPS=$(STEPS) cargo test --locked --lib $(OPTIMIZED) simulation:: -- --nocapture

chaos: ## Run real processes under random faults for 3 minutes (CHAOS_MINUTES) and check the invariants
	@scripts/install-packages chaos
	@scripts/chaos

failover: ## Fail Redis and Postgres over FAILOVER_ROUNDS (20) times under load and check the invariants
	@scripts/install-packages chaos
	@CHAOS_DRILL=failover scripts/chaos

memory: ## Keep Redis at maxmemory for 2 minutes under load and check the invariants
	@scripts/install-packages chaos
	@CHAOS_DRILL=memory scripts/chaos

fmt: ## Format the code
	@cargo fmt

lint: ## Check formatting, lints and documentation; warnings are errors
	@scripts/install-packages build
	@scripts/lint

advisories: ## Check dependencies for known vulnerabilities with cargo-deny (SECURITY.md)
	@scripts/advisories

sbom: ## Write the bill of materials (CycloneDX 1.6) to target/sbom.cdx.json
	@mkdir -p target
	@scripts/sbom >target/sbom.cdx.json

packages: ## Install the packages that the other targets need
	@scripts/install-packages test
