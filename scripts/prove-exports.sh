#!/usr/bin/env bash
# Proves that exports of Stable Diffusion 1.5's full size load in other people's programs: see tests/exports/prove.py.
# Needs python3 with venv, a C++ compiler (stable-diffusion.cpp is built from source), 20 GB of disk, 12 GB of memory.
# LIKENESS_PROOF_PYTHON names a Python that has the packages already.
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"

likeness=$target/release/likeness
[ -x "$likeness" ] || die "$likeness is not there" "make build"

# The versions of tests/golden/MANIFEST.md.
packages=(torch==2.9.1 diffusers==0.36.0 transformers==4.57.6 safetensors==0.8.0 numpy==2.4.6 pillow
    stable-diffusion-cpp-python==0.4.7)
python=${LIKENESS_PROOF_PYTHON:-}
if [ -z "$python" ]; then
    venv=$cache/proof-sd-cpp-0.4.7
    python=$venv/bin/python
    if [ ! -e "$venv/ready" ]; then
        say "fetching torch and diffusers, and building stable-diffusion.cpp: this takes a while, once"
        rm -rf "$venv"
        python3 -m venv "$venv" || die "python3 has no venv" "apt-get install python3-venv"
        logged proof "$venv/bin/pip" install --quiet "${packages[@]}" || die "the packages cannot be installed"
        touch "$venv/ready"
    fi
fi
scratch=$(mktemp -d "${TMPDIR:-/tmp}/likeness-proof.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
HF_HUB_OFFLINE=1 "$python" tests/exports/prove.py "$likeness" "$scratch"
