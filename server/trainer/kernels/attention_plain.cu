// Attention for what the tensor-core kernels do not take: f32, odd head sizes, heads wider than 160 (the autoencoder's single one of
// 512). Everything in f32, a lane holds every 32nd channel of a head. Without the score matrix in memory either.

#include "vectors.cuh"

/// A token's own channels of one head; zeros where it or they are not there.
template <typename T, int EACH>
__device__ __forceinline__ void load_token(float (&to)[EACH], const T* all, int token, int tokens, int size) {
    const T* from = all + ((static_cast<size_t>(blockIdx.z) * tokens + token) * gridDim.y + blockIdx.y) * size;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int channel = i * 32 + threadIdx.x % 32;
        to[i] = token < tokens && channel < size ? static_cast<float>(from[channel]) : 0.0f;
    }
}

template <typename T, int EACH>
__device__ __forceinline__ void store_token(T* all, const float (&from)[EACH], float scale, int token, int tokens, int size) {
    if (token >= tokens) return;
    T* to = all + ((static_cast<size_t>(blockIdx.z) * tokens + token) * gridDim.y + blockIdx.y) * size;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int channel = i * 32 + threadIdx.x % 32;
        if (channel < size) to[channel] = static_cast<T>(from[i] * scale);
    }
}

template <int EACH>
__device__ __forceinline__ float dot(const float (&a)[EACH], const float (&b)[EACH]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) sum += a[i] * b[i];
    return sum_of_warp(sum);
}

__device__ __forceinline__ size_t statistic(int query, int queries) {
    return (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * queries + query;
}

/// Grid: blocks of 16 queries, heads, rows; 128 threads. A warp has four queries, so that a key is read once for all of them.
template <typename T, int EACH>
__device__ __forceinline__ void forward(const T* all_q, const T* all_k, const T* all_v, T* y, float* stats, int size, int queries, int keys,
                                        int causal) {
    constexpr int OWN = 4;
    const int first = (blockIdx.x * 4 + threadIdx.x / 32) * OWN;
    if (first >= queries) return;
    const float scale = rsqrtf(static_cast<float>(size));
    float q[OWN][EACH], out[OWN][EACH] = {}, highest[OWN], sum[OWN] = {};
#pragma unroll
    for (int m = 0; m < OWN; ++m) {
        load_token(q[m], all_q, first + m, queries, size);
        highest[m] = -INFINITY;
    }
    const int last = causal ? min(keys, first + OWN) : keys;
    for (int key = 0; key < last; ++key) {
        float k[EACH], v[EACH];
        load_token(k, all_k, key, keys, size);
        load_token(v, all_v, key, keys, size);
#pragma unroll
        for (int m = 0; m < OWN; ++m) {
            if (causal && key > first + m) continue;
            const float score = dot(q[m], k) * scale;
            if (score > highest[m]) {
                const float shrink = expf(highest[m] - score);
                highest[m] = score;
                sum[m] *= shrink;
#pragma unroll
                for (int i = 0; i < EACH; ++i) out[m][i] *= shrink;
            }
            const float p = expf(score - highest[m]);
            sum[m] += p;
#pragma unroll
            for (int i = 0; i < EACH; ++i) out[m][i] += p * v[i];
        }
    }
#pragma unroll
    for (int m = 0; m < OWN; ++m) {
        store_token(y, out[m], 1.0f / sum[m], first + m, queries, size);
        if (threadIdx.x % 32 == 0 && first + m < queries) stats[statistic(first + m, queries)] = highest[m] + logf(sum[m]);
    }
}

/// dq and delta (see attention_backward.cu). Grid: blocks of 4 queries, heads, rows; 128 threads, a warp a query.
template <typename T, int EACH>
__device__ __forceinline__ void backward_q(const T* all_dy, const T* all_q, const T* all_k, const T* all_v, const T* all_y, const float* stats,
                                           float* delta, T* dq, int size, int queries, int keys, int causal) {
    const int query = blockIdx.x * 4 + threadIdx.x / 32;
    if (query >= queries) return;
    const float scale = rsqrtf(static_cast<float>(size)), lse = stats[statistic(query, queries)];
    float q[EACH], dy[EACH], y[EACH], out[EACH] = {};
    load_token(q, all_q, query, queries, size);
    load_token(dy, all_dy, query, queries, size);
    load_token(y, all_y, query, queries, size);
    const float own_delta = dot(dy, y);
    if (threadIdx.x % 32 == 0) delta[statistic(query, queries)] = own_delta;
    const int last = causal ? min(keys, query + 1) : keys;
    for (int key = 0; key < last; ++key) {
        float k[EACH], v[EACH];
        load_token(k, all_k, key, keys, size);
        load_token(v, all_v, key, keys, size);
        const float p = expf(dot(q, k) * scale - lse), ds = p * (dot(dy, v) - own_delta);
#pragma unroll
        for (int i = 0; i < EACH; ++i) out[i] += ds * k[i];
    }
    store_token(dq, out, scale, query, queries, size);
}

/// dk and dv. Grid: blocks of 4 keys, heads, rows; 128 threads, a warp a key.
template <typename T, int EACH>
__device__ __forceinline__ void backward_kv(const T* all_dy, const T* all_q, const T* all_k, const T* all_v, const float* stats,
                                            const float* delta, T* dk, T* dv, int size, int queries, int keys, int causal) {
    const int key = blockIdx.x * 4 + threadIdx.x / 32;
    if (key >= keys) return;
    const float scale = rsqrtf(static_cast<float>(size));
    float k[EACH], v[EACH], out_k[EACH] = {}, out_v[EACH] = {};
    load_token(k, all_k, key, keys, size);
    load_token(v, all_v, key, keys, size);
    for (int query = causal ? key : 0; query < queries; ++query) {
        float q[EACH], dy[EACH];
        load_token(q, all_q, query, queries, size);
        load_token(dy, all_dy, query, queries, size);
        const float p = expf(dot(q, k) * scale - stats[statistic(query, queries)]), ds = p * (dot(dy, v) - delta[statistic(query, queries)]);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            out_k[i] += ds * q[i];
            out_v[i] += p * dy[i];
        }
    }
    store_token(dk, out_k, scale, key, keys, size);
    store_token(dv, out_v, 1.0f, key, keys, size);
}

#define ATTENTION_PLAIN(TYPE, SUFFIX, EACH)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128) attention_plain_forward_##EACH##_##SUFFIX(                                         \
        const TYPE* q, const TYPE* k, const TYPE* v, TYPE* y, float* stats, int size, int queries, int keys, int causal) {               \
        begin();                                                                                                                         \
        forward<TYPE, EACH>(q, k, v, y, stats, size, queries, keys, causal);                                                             \
    }                                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(128) attention_plain_backward_q_##EACH##_##SUFFIX(                                      \
        const TYPE* dy, const TYPE* q, const TYPE* k, const TYPE* v, const TYPE* y, const float* stats, float* delta, TYPE* dq,          \
        int size, int queries, int keys, int causal) {                                                                                   \
        begin();                                                                                                                         \
        backward_q<TYPE, EACH>(dy, q, k, v, y, stats, delta, dq, size, queries, keys, causal);                                           \
    }                                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(128) attention_plain_backward_kv_##EACH##_##SUFFIX(                                     \
        const TYPE* dy, const TYPE* q, const TYPE* k, const TYPE* v, const float* stats, const float* delta, TYPE* dk, TYPE* dv,         \
        int size, int queries, int keys, int causal) {                                                                                   \
        begin();                                                                                                                         \
        backward_kv<TYPE, EACH>(dy, q, k, v, stats, delta, dk, dv, size, queries, keys, causal);                                         \
    }
#define ATTENTION_PLAIN_SIZES(TYPE, SUFFIX) \
    ATTENTION_PLAIN(TYPE, SUFFIX, 2)        \
    ATTENTION_PLAIN(TYPE, SUFFIX, 5)        \
    ATTENTION_PLAIN(TYPE, SUFFIX, 16)

ATTENTION_PLAIN_SIZES(float, f32)
ATTENTION_PLAIN_SIZES(__half, f16)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
ATTENTION_PLAIN_SIZES(__nv_bfloat16, bf16)
#endif
