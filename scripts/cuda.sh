#!/usr/bin/env bash
# The trainer's CUDA build. Building and checking need no GPU.
#   cuda.sh build      target/release/likeness-trainer-cuda
#   cuda.sh wanted     succeeds where `make build` should build it: with CUDA=1, or where there is a GPU or a toolkit
#   cuda.sh check      compiles the kernels, and checks the Rust side
#   cuda.sh check-12   compiles the kernels with CUDA 12's compiler, for drivers older than 580
#   cuda.sh libraries  brings the run-time libraries that a machine with a GPU lacks
#   cuda.sh test       runs the program's self-test on the GPU
#   cuda.sh bench      the self-test, then one table of what a step, memory, sampling and a whole run come to, PyTorch beside them
# test and bench take PROGRAM=... in place of the one that was built here, so that a finished one needs no Rust.
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=scripts/cuda-env.sh
. "$root/scripts/cuda-env.sh"
cd "$root"

built=$target/release/likeness-trainer-cuda
program=${PROGRAM:-$built}
golden=()
if [ -d tests/golden ]; then golden=(--golden tests/golden); fi

wanted() { [ "${CUDA:-}" = 1 ] || { [ "${CUDA:-}" != 0 ] && { gpu_answers || cuda_toolkit >/dev/null; }; }; }

build() {
    if [ -n "${PROGRAM:-}" ]; then return 0; fi
    scripts/setup.sh cuda
    use_cuda
    local plain=$target/release/likeness-trainer
    # Both builds of the trainer carry one name inside cargo. Its target folder keeps them apart and shares their dependencies;
    # only the finished file is the same, so this one is moved away and the CPU build put back by the next `cargo build`.
    say "building likeness-trainer-cuda (minutes the first time)"
    cargo build --locked --release -p trainer --bin likeness-trainer --features cuda
    if ! cmp -s "$plain" "$built"; then
        cp "$plain" "$built.partial"
        mv "$built.partial" "$built"
    fi
    rm -f "$plain"
    if gpu_answers; then libraries; fi
}

# The oldest and the newest kind of GPU: what fails on one in between fails on them.
check() {
    scripts/setup.sh cuda
    use_cuda
    LIKENESS_CUDA_ARCHS=${LIKENESS_CUDA_ARCHS:-75,90} cargo check --locked --release -p trainer --features cuda
}

# CUDA 12's nvcc is in no wheel, but its compiler is, as NVRTC. The Rust side loads libraries of either version while it runs,
# and is one source for both.
check_12() {
    local home=$cache/nvrtc-12.8.93
    if [ ! -d "$home" ]; then
        rm -rf "$home.partial"
        logged nvrtc-12 python3 -m pip install --quiet --no-deps --target "$home.partial" "${cuda_12_wheels[@]}" ||
            die "could not get CUDA 12's compiler" "pip install ${cuda_12_wheels[*]}"
        mv "$home.partial" "$home"
    fi
    python3 scripts/nvrtc-check.py "$home" 75 80 90
}

# The program looks for libraries by itself; `doctor` says what it found.
libraries() {
    if "$program" doctor --libraries >/dev/null 2>&1; then return 0; fi
    local packages=("nvidia-cublas>=13,<13.2" "nvidia-cudnn-cu13>=9.19,<10") driver
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
    # Drivers before 580 run CUDA 12 at most.
    if ! at_least 580 "${driver:-0}"; then packages=("nvidia-cublas-cu12>=12.8" "nvidia-cudnn-cu12>=9.19,<10" "nvidia-cuda-nvrtc-cu12>=12.8"); fi
    say "fetching CUDA's run-time libraries from PyPI (up to 1.5 GB, once): ${packages[*]}"
    logged cuda-libraries python3 -m pip install --quiet --no-deps --upgrade --target "$cache/cuda-libraries" "${packages[@]}" ||
        die "could not get CUDA's run-time libraries" "pip install ${packages[*]}"
    "$program" doctor --libraries || die "the libraries from PyPI do not load here" "install the CUDA toolkit and cuDNN 9"
}

need_gpu() {
    gpu_answers || die "no NVIDIA GPU answers here (nvidia-smi), so there is nothing to run this on"
    [ -x "$program" ] || die "likeness-trainer-cuda is not built" "make build CUDA=1"
}

bench() {
    "$program" selftest "${golden[@]}"
    PROGRAM=$program scripts/bench.sh cuda
}

case ${1:-} in
    build | wanted | check | libraries) "$1" ;;
    check-12) check_12 ;;
    test)
        need_gpu
        exec "$program" selftest "${golden[@]}"
        ;;
    bench)
        need_gpu
        bench
        ;;
    *) die "use: scripts/cuda.sh build|wanted|check|check-12|libraries|test|bench" ;;
esac
