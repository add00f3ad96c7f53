// Between the two products of a single wide head: scores to weights, a block a query. `engine/cuda/lower_attention.rs` calls it.

#include "vectors.cuh"

constexpr int THREADS = 256;

/// The same in every thread; LARGEST: the largest, else the sum.
template <bool LARGEST>
__device__ __forceinline__ float of_block(float x) {
    __shared__ float warps[THREADS / 32];
    const auto meet = [](float a, float b) { return LARGEST ? fmaxf(a, b) : a + b; };
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = meet(x, __shfl_xor_sync(0xffffffffu, x, step));
    // What another sum has left here was read by all before the last barrier of that sum.
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; ++i) x = meet(x, warps[i]);
    __syncthreads();
    return x;
}

template <typename T>
__device__ __forceinline__ void attention_weights(const float* all_scores, T* all_weights, float* stats, int size, int keys) {
    begin();
    const float* scores = all_scores + static_cast<size_t>(blockIdx.x) * keys;
    T* weights = all_weights + static_cast<size_t>(blockIdx.x) * keys;
    const float scale = rsqrtf(static_cast<float>(size));
    float highest = -INFINITY, sum = 0.0f;
    for (int i = threadIdx.x; i < keys; i += THREADS) highest = fmaxf(highest, scores[i] * scale);
    highest = of_block<true>(highest);
    for (int i = threadIdx.x; i < keys; i += THREADS) sum += expf(scores[i] * scale - highest);
    sum = of_block<false>(sum);
    const float share = 1.0f / sum;
    for (int i = threadIdx.x; i < keys; i += THREADS) weights[i] = static_cast<T>(expf(scores[i] * scale - highest) * share);
    if (threadIdx.x == 0) stats[blockIdx.x] = highest + logf(sum);
}

#define ATTENTION_WEIGHTS(TYPE, SUFFIX)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                     \
        attention_weights_##SUFFIX(const float* scores, TYPE* weights, float* stats, int size, int keys) {                    \
        attention_weights<TYPE>(scores, weights, stats, size, keys);                                                          \
    }

ATTENTION_WEIGHTS(float, f32)
ATTENTION_WEIGHTS(__half, f16)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
ATTENTION_WEIGHTS(__nv_bfloat16, bf16)
#endif
