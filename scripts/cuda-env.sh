# Sourced after common.sh by what compiles kernels: which compiler.
# shellcheck shell=bash disable=SC2034,SC2154

# nvcc and its parts, as small as they come; a machine needs neither GPU nor driver to compile.
cuda_wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
cuda_12_wheels=(nvidia-cuda-nvrtc-cu12==12.8.93 nvidia-cuda-runtime-cu12==12.8.90)
cuda_wheels_home=$cache/nvcc-13.0.88

# Exports what the trainer's build script looks for. Call after `setup.sh cuda`.
use_cuda() {
    local toolkit
    toolkit=$(cuda_toolkit) || toolkit=$cuda_wheels_home/nvidia/cu13
    export CUDA_HOME=$toolkit NVCC=$toolkit/bin/nvcc
}
