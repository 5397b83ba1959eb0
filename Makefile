# What people do with this project. `make` alone lists it.

.DEFAULT_GOAL := help
.PHONY: help demo install check test simulate chaos fmt lint packages

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

# The dev profile: a cold release build takes three times as long, and no one waits for the demo.
demo: ## Watch a simulated fleet in the browser; installs what is missing; Ctrl-C leaves nothing behind
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

test: ## Run all tests; installs what they need
	@scripts/install-packages test
	@scripts/test

STEPS ?= 100000000
simulate: ## Run the simulation for STEPS (100 million); docs/reliability.md
	@SIMULATION_STEPS=$(STEPS) cargo test --locked --lib simulation:: -- --nocapture

chaos: ## Run real processes under random faults for 3 minutes (CHAOS_MINUTES) and check what has to hold
	@scripts/install-packages chaos
	@scripts/chaos

fmt: ## Bring the code into its form
	@cargo fmt

lint: ## Check form, lints and documentation; a warning is an error
	@scripts/install-packages build
	@scripts/lint

packages: ## Install everything that the other targets would
	@scripts/install-packages test
