#!/usr/bin/env bash
# The trainer's CUDA build.
#   cuda.sh build      target/release/likeness-trainer-cuda
#   cuda.sh wanted     succeeds where `make build` should build it: with CUDA=1
#   cuda.sh check      compiles kernels and checks the Rust side, without linking; needs no GPU
#   cuda.sh libraries  brings the run-time libraries that the built program lacks on a machine with a GPU
#   cuda.sh test       runs the program's self-test on the GPU
#   cuda.sh bench      measures a training step and sampling on the GPU
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=scripts/cuda-env.sh
. "$root/scripts/cuda-env.sh"
cd "$root"

program=$target/release/likeness-trainer-cuda

# Only when asked for: its optimizer for DreamBooth runs on the CPU alone so far, and the server would take this build
# wherever it finds one. When it trains, `gpu_answers || cuda_toolkit >/dev/null` belongs here again.
wanted() { [ "${CUDA:-}" = 1 ]; }

build() {
    scripts/setup.sh cuda
    use_cuda
    local built=$target/release/likeness-trainer path="" folder
    # The program finds its libraries by itself, whoever starts it: the toolkit's, then those in the cache folder.
    for folder in "$CUDA_HOME/lib64" $(cuda_library_folders); do path=$path:$folder; done
    # Both builds of the trainer carry one name inside cargo. Its target folder keeps them apart and shares their dependencies;
    # only the finished file is the same, so this one is moved away and the CPU build put back by the next `cargo build`.
    say "building likeness-trainer-cuda (minutes the first time)"
    cargo rustc --locked --release -p trainer --bin likeness-trainer --features cuda -- -C "link-arg=-Wl,-rpath,${path#:}"
    if ! cmp -s "$built" "$program"; then
        cp "$built" "$program.partial"
        mv "$program.partial" "$program"
    fi
    rm -f "$built"
    if gpu_answers; then libraries; fi
}

check() {
    scripts/setup.sh cuda
    use_cuda
    cargo check --locked --release -p trainer --features cuda
}

# The libraries' SONAMEs name the packages that hold them.
libraries() {
    local missing package packages=()
    missing=$(ldd "$program" | awk '/not found/ { print $1 }')
    [ -n "$missing" ] || return 0
    for library in $missing; do
        case $library in
            libcublas.so.13 | libcublasLt.so.13) package="nvidia-cublas>=13,<13.2" ;;
            libcudart.so.13) package="nvidia-cuda-runtime==13.0.*" ;;
            libnvrtc.so.13) package="nvidia-cuda-nvrtc==13.0.*" ;;
            libcurand.so.10) package="nvidia-curand>=10.4,<10.5" ;;
            libcudnn.so.9) package="nvidia-cudnn-cu13>=9.19,<10" ;;
            libcuda.so.1) die "the GPU's driver library libcuda.so.1 is missing" "install NVIDIA's driver" ;;
            *) die "likeness-trainer-cuda needs $library, which is not on this machine" "install it from the CUDA toolkit" ;;
        esac
        packages+=("$package")
    done
    say "fetching CUDA's run-time libraries from PyPI (up to 1.5 GB, once): ${missing//$'\n'/ }"
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    logged cuda-libraries python3 -m pip install --quiet --no-deps --upgrade --target "$cache/cuda-libraries" "${packages[@]}" ||
        die "could not get CUDA's run-time libraries" "pip install ${packages[*]}"
    missing=$(ldd "$program" | awk '/not found/ { print $1 }')
    [ -z "$missing" ] || die "still missing: $missing" "install the CUDA toolkit's run-time libraries and cuDNN 9"
}

need_gpu() {
    gpu_answers || die "no NVIDIA GPU answers here (nvidia-smi), so there is nothing to run this on"
    [ -x "$program" ] || die "likeness-trainer-cuda is not built" "make build CUDA=1"
}

case ${1:-} in
    build | wanted | check | libraries) "$1" ;;
    test)
        need_gpu
        exec "$program" selftest
        ;;
    bench)
        need_gpu
        "$program" bench train --arch sd15 --dtype bf16 --rows 2 --train_text_encoder --use_8bit_adam --steps 50 --device cuda
        exec "$program" bench sample --arch sd15 --dtype fp16 --rows 4 --steps 24 --device cuda
        ;;
    *) die "use: scripts/cuda.sh build|wanted|check|libraries|test|bench" ;;
esac
