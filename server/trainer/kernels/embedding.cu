// Token and position embeddings. Repeated tokens are summed in the order in which they occur, so that every run gives the same bits.

#include "elements.cuh"

constexpr int THREADS = 256;

/// Grid: tokens of all rows.
template <typename T>
__device__ __forceinline__ void embedding(const uint32_t* ids, const T* table, const T* positions, T* y, int tokens, int width) {
    begin();
    const T* word = table + static_cast<size_t>(ids[blockIdx.x]) * width;
    const T* position = positions + static_cast<size_t>(blockIdx.x % tokens) * width;
    T* to = y + static_cast<size_t>(blockIdx.x) * width;
    for (int at = threadIdx.x; at < width; at += THREADS) to[at] = static_cast<T>(static_cast<float>(word[at]) + static_cast<float>(position[at]));
}

/// Writes the threads whose `wanted` is set to `list`, in order, and tells how many they are.
__device__ __forceinline__ int ordered(int (&list)[THREADS], bool wanted) {
    __shared__ int counts[THREADS / 32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t votes = __ballot_sync(0xffffffffu, wanted);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int before = __popc(votes & ((1u << lane) - 1)), all = 0;
    for (int i = 0; i < THREADS / 32; ++i) {
        if (i < warp) before += counts[i];
        all += counts[i];
    }
    if (wanted) list[before] = threadIdx.x;
    __syncthreads();
    return all;
}

/// Grid: tokens of all rows, blocks of THREADS columns. The first occurrence of a token sums all of them.
template <typename T>
__device__ __forceinline__ void embedding_grad(const T* dy, const uint32_t* ids, T* dtable, int width, int add) {
    begin();
    __shared__ int list[THREADS];
    const int own = blockIdx.x, all = gridDim.x, column = blockIdx.y * THREADS + threadIdx.x;
    const uint32_t id = ids[own];
    bool seen = false;
    for (int i = threadIdx.x; i < own; i += THREADS) seen |= ids[i] == id;
    if (__syncthreads_or(seen)) return;
    float sum = 0.0f;
    for (int start = own; start < all; start += THREADS) {
        const int other = start + threadIdx.x;
        const int count = ordered(list, other < all && ids[other] == id);
        if (column < width) {
#pragma unroll 8
            for (int i = 0; i < count; ++i) sum += static_cast<float>(dy[static_cast<size_t>(start + list[i]) * width + column]);
        }
        // The list is written anew.
        __syncthreads();
    }
    if (column < width) put_gradient(dtable + static_cast<size_t>(id) * width, column, sum, add);
}

/// Grid: positions.
template <typename T>
__device__ __forceinline__ void positions_grad(const T* dy, T* dpositions, int rows, int width, int add) {
    begin();
    const size_t position = static_cast<size_t>(blockIdx.x) * width, row = static_cast<size_t>(gridDim.x) * width;
    for (int at = threadIdx.x; at < width; at += THREADS) {
        float sum = 0.0f;
#pragma unroll 4
        for (int i = 0; i < rows; ++i) sum += static_cast<float>(dy[i * row + position + at]);
        put_gradient(dpositions + position, at, sum, add);
    }
}

#define EMBEDDING(TYPE, SUFFIX)                                                                                              \
    KERNEL(THREADS)                                                                                                          \
    embedding_##SUFFIX(const uint32_t* ids, const TYPE* table, const TYPE* positions, TYPE* y, int tokens, int width) {      \
        embedding<TYPE>(ids, table, positions, y, tokens, width);                                                            \
    }                                                                                                                        \
    KERNEL(THREADS) embedding_grad_##SUFFIX(const TYPE* dy, const uint32_t* ids, TYPE* dtable, int width, int add) {         \
        embedding_grad<TYPE>(dy, ids, dtable, width, add);                                                                   \
    }                                                                                                                        \
    KERNEL(THREADS) positions_grad_##SUFFIX(const TYPE* dy, TYPE* dpositions, int rows, int width, int add) {                \
        positions_grad<TYPE>(dy, dpositions, rows, width, add);                                                              \
    }
EMBEDDING(float, f32)
EMBEDDING(__half, f16)
IF_BF16(EMBEDDING(__nv_bfloat16, bf16))
