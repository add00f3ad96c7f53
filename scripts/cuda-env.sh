# Sourced after common.sh by what compiles for CUDA: which toolkit, and how the compiler is told.
# shellcheck shell=bash disable=SC2034,SC2154

# nvcc and its parts, as small as they come; a machine needs neither GPU nor driver to compile.
cuda_wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
cuda_wheels_home=$cache/nvcc-13.0.88

cuda_major() { "$1/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p'; }

# Folder of the cudarc source that the lock file names, fetched when it is not there yet.
cudarc_sources() {
    local version dir
    version=$(awk '/^name = "cudarc"$/ { getline; gsub(/version = |"/, ""); print; exit }' "$root/Cargo.lock")
    [ -n "$version" ] || die "Cargo.lock names no cudarc"
    for _ in 1 2; do
        for dir in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"cudarc-$version"; do
            if [ -d "$dir" ]; then
                printf '%s\n' "$dir"
                return 0
            fi
        done
        logged fetch-cuda cargo fetch --locked || die "could not fetch the crates" "cargo fetch --locked"
    done
    die "cargo fetched cudarc $version, but its source is not in ${CARGO_HOME:-$HOME/.cargo}/registry"
}

# PTX for Ampere runs on everything later too. Only an older card, if it is the one here, asks for less.
cuda_arch() {
    local found
    if [ -n "${CUDA_COMPUTE_CAP:-}" ]; then
        printf '%s\n' "$CUDA_COMPUTE_CAP"
        return 0
    fi
    found=$(gpu_answers && nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d '. ' | sort -n | head -n 1) || true
    if [ -n "$found" ] && [ "$found" -lt 80 ]; then printf '%s\n' "$found"; else printf '80\n'; fi
}

# Exports what cargo's build scripts look for. Call after `setup.sh cuda`.
use_cuda() {
    local toolkit front
    toolkit=$(cuda_toolkit) || toolkit=$cuda_wheels_home/nvidia/cu13
    export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit
    CUDA_COMPUTE_CAP=$(cuda_arch)
    export CUDA_COMPUTE_CAP
    export CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$jobs}
    # The wrapper lies under a name made of its contents: cargo rebuilds the kernels when it changes, and not otherwise,
    # however many clones there are.
    front=$cache/nvcc-front-$(sha256sum <"$root/scripts/nvcc" | cut -c 1-12)/bin
    if [ ! -x "$front/nvcc" ]; then
        mkdir -p "$front"
        cp "$root/scripts/nvcc" "$front/nvcc.partial"
        chmod +x "$front/nvcc.partial"
        mv "$front/nvcc.partial" "$front/nvcc"
    fi
    export LIKENESS_NVCC=$toolkit/bin/nvcc NVCC=$front/nvcc PATH=$front:$PATH
    # The linker looks here last, so installed libraries win over the stand-ins. An environment variable and not a flag,
    # because changed flags would rebuild every crate.
    LIBRARY_PATH=${LIBRARY_PATH:+$LIBRARY_PATH:}$cache/cuda-stubs-$(cuda_major "$toolkit")-$(basename "$(cudarc_sources)")
    export LIBRARY_PATH
}

# Folders with CUDA's run-time libraries that `cuda.sh libraries` put in the cache folder, for the program's search path.
cuda_library_folders() {
    printf '%s\n' "$cache/cuda-libraries/nvidia/cu13/lib" "$cache/cuda-libraries/nvidia/cudnn/lib"
}
