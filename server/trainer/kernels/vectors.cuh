// N neighbouring elements of any type as floats, moved in one access of up to 16 bytes.

#pragma once

#include "begin.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

template <typename T, int N>
struct alignas(N * sizeof(T)) Packed {
    T values[N];
};

template <int N, typename T>
__device__ __forceinline__ void load_vector(float (&to)[N], const T* from) {
    const Packed<T, N> packed = *reinterpret_cast<const Packed<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = static_cast<float>(packed.values[i]);
}

template <int N, typename T>
__device__ __forceinline__ void store_vector(T* to, const float (&from)[N]) {
    Packed<T, N> packed;
#pragma unroll
    for (int i = 0; i < N; ++i) packed.values[i] = static_cast<T>(from[i]);
    *reinterpret_cast<Packed<T, N>*>(to) = packed;
}

/// The same total in every lane, added up in the same order every time.
__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

/// A weight's gradient: added to what is there, or in its place.
template <typename T>
__device__ __forceinline__ void put_gradient(T* to, int at, float value, int add) {
    if (to != nullptr) to[at] = static_cast<T>(add ? value + static_cast<float>(to[at]) : value);
}
