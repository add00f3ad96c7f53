// Vectors that a buffer's end may cut short, and how entry points are declared.

#pragma once

#include "vectors.cuh"

#define KERNEL(THREADS) extern "C" __global__ void __launch_bounds__(THREADS)

// Turing has no bf16; the program computes in f16 there.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define IF_BF16(...) __VA_ARGS__
#else
#define IF_BF16(...)
#endif

/// Zeros past the end.
template <int N, typename T>
__device__ __forceinline__ void load_part(float (&to)[N], const T* from, size_t at, size_t len) {
    if (at + N <= len) {
        load_vector<N>(to, from + at);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = at + i < len ? static_cast<float>(from[at + i]) : 0.0f;
    }
}

template <int N, typename T>
__device__ __forceinline__ void store_part(T* to, const float (&from)[N], size_t at, size_t len) {
    if (at + N <= len) {
        store_vector<N>(to + at, from);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (at + i < len) to[at + i] = static_cast<T>(from[i]);
        }
    }
}
