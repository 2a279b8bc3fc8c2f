# The two commands of the README, and a few shorter ones.
.PHONY: demo test check differential-self bench compare help

help: ## Says what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: ## A shop behind HTTPS, run from a folder of YAML: requests, an edit, a broken edit, a measured rate and latency
	@scripts/demo.sh

test: ## Every test
	@.ci/run tools build test

check: ## What a change must pass before it lands
	@.ci/run

differential-self: ## The differential suite with Envoy on both sides: it must find nothing
	@TORUS_DIFFERENTIAL_SELF=1 cargo test -p torus-tests --test differential -- --nocapture

compare: ## torus-proxy, Envoy, nginx and HAProxy in one run (PEERS=traefik,caddy: these too): installs, prints the table, writes a page
	@scripts/install-test-tools.sh $(if $(PEERS),peers)
	@mkdir -p target
	@benches/compare.py --peers "$(PEERS)" --json target/compare.json --html target/compare.html

bench: ## The same without installing, and without files
	@benches/compare.py
