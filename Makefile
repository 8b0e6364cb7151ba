# The commands of this project; each does its own set-up.
TOX = .cache/tools/bin/tox --quiet run
export TOX_WORK_DIR = .cache/tox

.DEFAULT_GOAL := help
.PHONY: help set-up demo bench test format lint unit functional integration soak reference docs audit sbom fuzz lock pin-release clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

set-up: ## Install what the other commands need
	@tools/set-up

demo: set-up ## Show the charm at work on a throwaway node
	@$(TOX) -e demo

bench: set-up ## Measure what the charm costs, and write build/bench.json
	@$(TOX) -e bench

test: set-up ## Format, lint, types, documentation, unit and functional tests
	@$(TOX) -e lint,docs,unit,functional
	@$(TOX) -e integration -- --collect-only --quiet

format: set-up ## Write the code in the one format
	@$(TOX) -e format

lint: set-up ## Format, lint and types
	@$(TOX) -e lint

unit: set-up ## Unit tests
	@$(TOX) -e unit

functional: set-up ## Tests on real parts, and on a throwaway node
	@$(TOX) -e functional

integration: set-up ## Tests on a Juju controller, with KVM
	@$(TOX) -e integration

soak: set-up ## Kill hooks and cut the power for half an hour: KATA_SOAK_MINUTES, KATA_SOAK_SEED
	@$(TOX) -e soak

reference: set-up ## Write the reference pages from charmcraft.yaml
	@$(TOX) -e reference

docs: set-up ## Build the documentation as a site, below site/
	@$(TOX) -e docs

audit: set-up ## Ask for known faults of what the charm is packed with (needs the internet)
	@$(TOX) -e audit

sbom: set-up ## Write its bill of materials: kata.cdx.json
	@$(TOX) -e sbom

fuzz: set-up ## Fuzz a hundred times as long as the unit tests do; KATA_FUZZ=1000 for longer
	@KATA_FUZZ=$${KATA_FUZZ:-100} $(TOX) -e fuzz

lock: set-up ## Write the lock files anew from pyproject.toml
	@tools/lock

pin-release: set-up ## Add a Kata release to the table of digests: VERSION=4.1.0
	@.cache/tools/bin/python tools/pin_release.py "$(VERSION)"

clean: ## Remove what the commands made in this folder
	@rm -rf .cache .tox build site
