// Layer norm over the channels of each token, `[tokens, channels]`. A warp has a token at a time; what it reads again lies in L1.

#include "vectors.cuh"

constexpr int THREADS = 256;

/// Grid: blocks of 8 tokens.
template <typename T, int N>
__device__ __forceinline__ void layer_norm(const T* x, const T* w, const T* b, T* y, float* stats, float eps, int tokens, int channels) {
    const int token = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    const T* from = x + static_cast<size_t>(token) * channels;
    T* to = y + static_cast<size_t>(token) * channels;
    float values[N], sum = 0.0f, squares = 0.0f;
    for (int at = lane * N; at < channels; at += 32 * N) {
        load_vector<N>(values, from + at);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += values[i];
    }
    const float mean = sum_of_warp(sum) / static_cast<float>(channels);
    for (int at = lane * N; at < channels; at += 32 * N) {
        load_vector<N>(values, from + at);
#pragma unroll
        for (int i = 0; i < N; ++i) squares += (values[i] - mean) * (values[i] - mean);
    }
    const float rstd = rsqrtf(sum_of_warp(squares) / static_cast<float>(channels) + eps);
    for (int at = lane * N; at < channels; at += 32 * N) {
        float scale[N], offset[N];
        load_vector<N>(values, from + at);
        load_vector<N>(scale, w + at);
        load_vector<N>(offset, b + at);
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] = (values[i] - mean) * rstd * scale[i] + offset[i];
        store_vector<N>(to + at, values);
    }
    if (lane == 0) {
        stats[static_cast<size_t>(token) * 2] = mean;
        stats[static_cast<size_t>(token) * 2 + 1] = rstd;
    }
}

/// dx of a band of tokens, then the band's sums for dw and db: `parts` `[bands, 2, channels]`, or none. Grid: bands. `dx` may be `plus`, but not
/// `dy` or `x`, which are read again.
template <typename T, int N>
__device__ __forceinline__ void layer_norm_grad(const T* dy, const T* x, const T* w, const float* stats, const T* plus, T* dx, float* parts, int band,
                                                int tokens, int channels) {
    const int first = blockIdx.x * band, last = min(first + band, tokens), lane = threadIdx.x % 32;
    for (int token = first + threadIdx.x / 32; token < last; token += THREADS / 32) {
        const size_t start = static_cast<size_t>(token) * channels;
        const float mean = stats[static_cast<size_t>(token) * 2], rstd = stats[static_cast<size_t>(token) * 2 + 1];
        float values[N], upstream[N], scale[N], sum = 0.0f, sum_n = 0.0f;
        for (int at = lane * N; at < channels; at += 32 * N) {
            load_vector<N>(values, x + start + at);
            load_vector<N>(upstream, dy + start + at);
            load_vector<N>(scale, w + at);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sum += scale[i] * upstream[i];
                sum_n += scale[i] * upstream[i] * ((values[i] - mean) * rstd);
            }
        }
        sum = sum_of_warp(sum) / static_cast<float>(channels);
        sum_n = sum_of_warp(sum_n) / static_cast<float>(channels);
        for (int at = lane * N; at < channels; at += 32 * N) {
            float more[N] = {};
            load_vector<N>(values, x + start + at);
            load_vector<N>(upstream, dy + start + at);
            load_vector<N>(scale, w + at);
            if (plus) load_vector<N>(more, plus + start + at);
#pragma unroll
            for (int i = 0; i < N; ++i) values[i] = rstd * (scale[i] * upstream[i] - sum - (values[i] - mean) * rstd * sum_n) + more[i];
            store_vector<N>(dx + start + at, values);
        }
    }
    if (parts == nullptr) return;
    for (int at = threadIdx.x * N; at < channels; at += THREADS * N) {
        float values[N], upstream[N], dw[N] = {}, db[N] = {};
#pragma unroll 4
        for (int token = first; token < last; ++token) {
            const size_t start = static_cast<size_t>(token) * channels;
            const float mean = stats[static_cast<size_t>(token) * 2], rstd = stats[static_cast<size_t>(token) * 2 + 1];
            load_vector<N>(values, x + start + at);
            load_vector<N>(upstream, dy + start + at);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                dw[i] += upstream[i] * ((values[i] - mean) * rstd);
                db[i] += upstream[i];
            }
        }
        float* to = parts + static_cast<size_t>(blockIdx.x) * 2 * channels + at;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            to[i] = dw[i];
            to[channels + i] = db[i];
        }
    }
}

/// dw and db from the bands' sums. Grid: blocks of 32 channels, 2; 256 threads: eight lanes of bands a channel.
template <typename T>
__device__ __forceinline__ void layer_norm_grad_finish(const float* parts, T* dw, T* db, int bands, int channels, int add) {
    __shared__ float sums[THREADS / 32][32];
    const int channel = blockIdx.x * 32 + threadIdx.x % 32, lane = threadIdx.x / 32;
    float sum = 0.0f;
    if (channel < channels) {
        for (int band = lane; band < bands; band += THREADS / 32) sum += parts[(static_cast<size_t>(band) * 2 + blockIdx.y) * channels + channel];
    }
    sums[lane][threadIdx.x % 32] = sum;
    __syncthreads();
    if (lane > 0 || channel >= channels) return;
    for (int i = 1; i < THREADS / 32; ++i) sum += sums[i][threadIdx.x];
    put_gradient(blockIdx.y ? db : dw, channel, sum, add);
}

#define LAYER_NORM(TYPE, SUFFIX, N)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_##N##_##SUFFIX(const TYPE* x, const TYPE* w, const TYPE* b, TYPE* y,   \
                                                                                     float* stats, float eps, int tokens, int channels) {    \
        begin();                                                                                                                             \
        layer_norm<TYPE, N>(x, w, b, y, stats, eps, tokens, channels);                                                                       \
    }                                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_grad_##N##_##SUFFIX(                                                    \
        const TYPE* dy, const TYPE* x, const TYPE* w, const float* stats, const TYPE* plus, TYPE* dx, float* parts, int band, int tokens,    \
        int channels) {                                                                                                                      \
        begin();                                                                                                                             \
        layer_norm_grad<TYPE, N>(dy, x, w, stats, plus, dx, parts, band, tokens, channels);                                                  \
    }
#define LAYER_NORM_ALL(TYPE, SUFFIX, N)                                                                                                      \
    LAYER_NORM(TYPE, SUFFIX, N)                                                                                                              \
    LAYER_NORM(TYPE, SUFFIX, 1)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_grad_finish_##SUFFIX(const float* parts, TYPE* dw, TYPE* db, int bands, \
                                                                                           int channels, int add) {                          \
        begin();                                                                                                                             \
        layer_norm_grad_finish<TYPE>(parts, dw, db, bands, channels, add);                                                                   \
    }

LAYER_NORM_ALL(float, f32, 4)
LAYER_NORM_ALL(__half, f16, 8)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
LAYER_NORM_ALL(__nv_bfloat16, bf16, 8)
#endif
