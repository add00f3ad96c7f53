# Every target does its own set-up; `make` alone lists them. CARGO_TARGET_DIR and LIKENESS_CACHE are honoured.

TARGET := $(or $(CARGO_TARGET_DIR),target)
CARGO ?= cargo
# One selection of packages and one profile for everything native, so that cargo builds each dependency once.
NATIVE := --locked --release --workspace --exclude frontend
# Arguments for the server: make run ARGS='--listen 0.0.0.0:7860 --password-file secret'
ARGS ?=
export CUDA

.DEFAULT_GOAL := help
SHELL := /bin/bash
# The order of prerequisites is the order of costs.
.NOTPARALLEL:
.PHONY: help run build test test-fast lint page browser native-tests pictures bench-photos prove-dreambooth prove-exports check-cuda test-cuda bench bench-cuda clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## build what is missing, then serve http://127.0.0.1:7860
	exec $(TARGET)/release/likeness $(ARGS)

# The CUDA trainer comes first: cargo knows both builds of the trainer by one file name, and the CPU build must be what stays.
build: page ## build the page, the server and the trainer (CUDA=1: the CUDA trainer too)
	@if scripts/cuda.sh wanted; then scripts/cuda.sh build; fi
	$(CARGO) build --locked --release -p web -p trainer

# The tests come last, so that their counts close the output.
test: lint browser check-cuda native-tests ## run every check and test, browser tests included; needs no GPU

test-fast: lint page ## the same without a browser and without the CUDA check
	$(CARGO) build $(NATIVE) --bins --tests
	$(CARGO) test $(NATIVE) -- --skip browser

lint: ## formatting, house rules, clippy for the native side and for the page
	scripts/setup.sh native
	$(CARGO) fmt --all --check
	scripts/tidy.sh
	$(CARGO) clippy $(NATIVE) --all-targets -- -D warnings
	@scripts/setup.sh wasm
	@. scripts/env.sh && export CARGO_TARGET_DIR=$(abspath $(TARGET))/wasm && set -x && \
		$(CARGO) clippy --locked --profile wasm-release --target wasm32-unknown-unknown -p frontend -p app -- -D warnings

page:
	@scripts/setup.sh native
	@scripts/build-page.sh

browser:
	@scripts/setup.sh browser

# --bins: the tests of the whole system start the programs, which `cargo test` alone would not build.
native-tests: page
	$(CARGO) build $(NATIVE) --bins --tests
	@. scripts/browser-env.sh && set -x && $(CARGO) test $(NATIVE)

pictures: page browser ## draw the README's pictures again, by a first run in a real browser
	$(CARGO) build $(NATIVE) --bins --tests
	@. scripts/browser-env.sh && set -x && LIKENESS_SCREENSHOTS=$(CURDIR)/target/pictures $(CARGO) test $(NATIVE) --test main \
		browser_pictures_of_a_first_run -- --ignored

bench-photos: page browser ## time 24 large photos from drop to uploaded, in a real browser
	$(CARGO) build $(NATIVE) --bins
	@. scripts/browser-env.sh && set -x && $(CARGO) bench --locked --workspace --exclude frontend --profile release --bench photos

# PHOTOS: a folder of folders of photos, such as the DreamBooth paper's; without it the repository's own cat is learned.
prove-dreambooth: ## measure likeness, drift and diversity on the starter, and draw the figure of it: PHOTOS=FOLDER
	scripts/setup.sh native
	$(CARGO) build $(NATIVE) --bins
	$(CARGO) bench --locked --workspace --exclude frontend --profile release --bench dreambooth -- \
		$(CURDIR)/docs/pictures/dreambooth.png $(if $(PHOTOS),$(abspath $(PHOTOS)))

prove-exports: ## load full-size exports in diffusers, torch and stable-diffusion.cpp (fetches 4 GB of packages, once)
	$(CARGO) build --locked --release -p web -p trainer
	scripts/prove-exports.sh

check-cuda: ## compile the CUDA kernels and check the CUDA trainer; needs no GPU
	scripts/cuda.sh check

test-cuda: ## the CUDA trainer's self-test, on this machine's GPU
	@scripts/cuda.sh build
	scripts/cuda.sh test

bench: ## time the starter's training step and sampling on two cores, PyTorch's beside them where it is installed
	$(CARGO) build --locked --release -p web -p trainer
	scripts/bench.sh cpu

bench-cuda: ## the same of SD 1.5 on this machine's GPU, with memory and the tutorial's whole run
	@scripts/cuda.sh build
	scripts/cuda.sh bench

clean: ## remove what was built here (tools in the cache folder stay)
	rm -rf target
	$(CARGO) clean
