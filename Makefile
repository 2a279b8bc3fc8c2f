# The two commands of the README, and a few shorter ones.
.PHONY: demo test check differential-self bench help

help: ## Says what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: ## A gateway on real io_uring with a backend behind it: requests, answers, a measured rate and latency
	@scripts/demo.sh

test: ## Every test
	@.ci/run tools build test

check: ## What a change must pass before it lands
	@.ci/run

differential-self: ## The differential suite with Envoy on both sides: it must find nothing
	@TORUS_DIFFERENTIAL_SELF=1 cargo test -p torus-tests --test differential -- --nocapture

bench: ## torus-proxy, Envoy and nginx in one run
	@benches/compare-http1.py
