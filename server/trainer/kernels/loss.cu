// Mean squared error by row and its gradient, in f32.

#include "elements.cuh"

constexpr int THREADS = 1024;

/// Grid: rows. losses[row] = mean (predicted - target)^2; dpredicted = scale * weights[row] * its gradient.
template <typename T>
__device__ __forceinline__ void mse(const T* predicted, const float* target, const float* weights, const float* scale, float* losses, T* dpredicted,
                                    long long count) {
    begin();
    __shared__ float sums[THREADS / 32];
    const size_t row = static_cast<size_t>(blockIdx.x) * count;
    const float factor = scale[0] * weights[blockIdx.x] * 2.0f / static_cast<float>(count);
    float sum = 0.0f;
#pragma unroll 4
    for (long long i = threadIdx.x; i < count; i += THREADS) {
        const float error = static_cast<float>(predicted[row + i]) - target[row + i];
        sum += error * error;
        dpredicted[row + i] = static_cast<T>(error * factor);
    }
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = sum_of_warp(sums[threadIdx.x]);
    if (threadIdx.x == 0) losses[blockIdx.x] = sum / static_cast<float>(count);
}

#define MSE(TYPE, SUFFIX)                                                                                                    \
    KERNEL(THREADS)                                                                                                          \
    mse_##SUFFIX(const TYPE* predicted, const float* target, const float* weights, const float* scale, float* losses,        \
                 TYPE* dpredicted, long long count) {                                                                        \
        mse<TYPE>(predicted, target, weights, scale, losses, dpredicted, count);                                             \
    }
MSE(float, f32)
MSE(__half, f16)
IF_BF16(MSE(__nv_bfloat16, bf16))
