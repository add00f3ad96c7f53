// What the three attention kernels share: tiles of one head in shared memory, and fragments of them.
//
// A head's matrix is `[tokens, size]` inside `[tokens, heads * size]`. Its columns are padded with zeros to WIDTH, a
// multiple of 8, in shared memory and registers only. Rows in shared memory are an odd number of 16-byte units apart, so
// that the eight rows of one matrix lie in different banks. Columns are taken sixteen at a time; where eight are left, fragments
// of the last time are half as deep or as wide.

#pragma once

#include "mma.cuh"

#define LOG2_E 1.4426950408889634f

/// Sixteens of columns, the last of which may be half a one.
__host__ __device__ constexpr int sixteens(int width) { return (width + 15) / 16; }

/// Elements from a row to the next in shared memory.
__host__ __device__ constexpr int pitch(int width) { return width / 8 % 2 ? width : width + 8; }

/// Whether sixteen columns `k` of WIDTH are eight only.
__host__ __device__ constexpr bool halved(int width, int k) { return k == width / 16; }

/// One head of one row of the batch.
template <typename T>
struct Head {
    const T* first;
    int tokens;
    int size;
    /// Elements from a token to the next: heads * size.
    int stride;
};

template <typename T>
__device__ __forceinline__ Head<T> head_of(const T* all, int tokens, int size) {
    const size_t row = static_cast<size_t>(blockIdx.z) * tokens * gridDim.y * size;
    return {all + row + blockIdx.y * size, tokens, size, static_cast<int>(gridDim.y) * size};
}

/// Two neighbouring elements, zeros outside the head. `column` is even and so is the head's size.
template <typename T>
__device__ __forceinline__ uint32_t pair_at(const Head<T>& head, int token, int column) {
    if (token >= head.tokens || column >= head.size) return 0;
    return *reinterpret_cast<const uint32_t*>(head.first + static_cast<size_t>(token) * head.stride + column);
}

/// ROWS tokens from `first` on, to shared memory, by all threads of the block.
template <typename T, int WIDTH, int ROWS>
__device__ __forceinline__ void load_tile(T* tile, const Head<T>& head, int first) {
    constexpr int UNITS = WIDTH / 8;
    if (head.size % 8 == 0) {
        for (int i = threadIdx.x; i < ROWS * UNITS; i += blockDim.x) {
            const int row = i / UNITS, column = i % UNITS * 8;
            const bool there = first + row < head.tokens && column < head.size;
            const T* from = head.first + (there ? static_cast<size_t>(first + row) * head.stride + column : 0);
            copy_16(tile + row * pitch(WIDTH) + column, from, there);
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * WIDTH / 2; i += blockDim.x) {
            const int row = i / (WIDTH / 2), column = i % (WIDTH / 2) * 2;
            *reinterpret_cast<uint32_t*>(tile + row * pitch(WIDTH) + column) = pair_at(head, first + row, column);
        }
    }
}

/// Sixteen tokens as the left operand, from global memory: a fragment for each sixteen columns.
template <typename T, int WIDTH>
__device__ __forceinline__ void load_left(uint32_t (&left)[sixteens(WIDTH)][4], const Head<T>& head, int first) {
    const int lane = threadIdx.x % 32, row = first + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < sixteens(WIDTH); ++k) {
        left[k][0] = pair_at(head, row, k * 16 + column);
        left[k][1] = pair_at(head, row + 8, k * 16 + column);
        if (halved(WIDTH, k)) continue;
        left[k][2] = pair_at(head, row, k * 16 + 8 + column);
        left[k][3] = pair_at(head, row + 8, k * 16 + 8 + column);
    }
}

/// The same from a tile in shared memory, fragment `k` alone.
template <typename T, int WIDTH>
__device__ __forceinline__ void left_of_tile(uint32_t (&left)[4], const T* tile, int first, int k) {
    const int lane = threadIdx.x % 32;
    load_matrices(left, tile + (first + lane % 16) * pitch(WIDTH) + k * 16 + lane / 16 * 8);
}

/// Right operand whose columns are the tile's tokens `first..first + 16` and whose depth is the head's columns `k * 16..`:
/// fragments of the first eight tokens, then of the others. Of half a sixteen of columns two, the first eight tokens' and the others'.
template <typename T, int WIDTH>
__device__ __forceinline__ void right_by_tokens(uint32_t (&right)[4], const T* tile, int first, int k) {
    const int lane = threadIdx.x % 32;
    if (halved(WIDTH, k)) {
        load_two_matrices(right[0], right[2], tile + (first + lane % 16) * pitch(WIDTH) + k * 16);
    } else {
        load_matrices(right, tile + (first + lane / 16 * 8 + lane % 8) * pitch(WIDTH) + k * 16 + lane / 8 % 2 * 8);
    }
}

/// Right operand whose depth is the tile's tokens `first..first + 16` and whose columns are the head's `n * 16..`:
/// fragments of the first eight columns, then of the others, where there are any.
template <typename T, int WIDTH>
__device__ __forceinline__ void right_by_columns(uint32_t (&right)[4], const T* tile, int first, int n) {
    const int lane = threadIdx.x % 32;
    if (halved(WIDTH, n)) {
        load_two_matrices_transposed(right[0], right[1], tile + (first + lane % 16) * pitch(WIDTH) + n * 16);
    } else {
        load_matrices_transposed(right, tile + (first + lane % 16) * pitch(WIDTH) + n * 16 + lane / 16 * 8);
    }
}

/// c[0], c[1] += a b, b of [`right_by_tokens`]: sixteen tokens, over columns `k * 16..`.
template <typename T, int WIDTH>
__device__ __forceinline__ void add_over_columns(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4], const uint32_t (&right)[4], int k) {
    if (halved(WIDTH, k)) {
        mma_shallow<T>(c0, a[0], a[1], right[0]);
        mma_shallow<T>(c1, a[0], a[1], right[2]);
    } else {
        mma<T>(c0, a, right[0], right[1]);
        mma<T>(c1, a, right[2], right[3]);
    }
}

/// c[2n], c[2n + 1] += a b, b of [`right_by_columns`]: columns `n * 16..`, over sixteen tokens.
template <typename T, int WIDTH>
__device__ __forceinline__ void add_over_tokens(float (&c)[WIDTH / 8][4], const uint32_t (&a)[4], const uint32_t (&right)[4], int n) {
    mma<T>(c[2 * n], a, right[0], right[1]);
    if (!halved(WIDTH, n)) mma<T>(c[halved(WIDTH, n) ? 2 * n : 2 * n + 1], a, right[2], right[3]);
}

/// Sum over the four lanes that share a row of C.
__device__ __forceinline__ float sum_of_row(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float max_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// Two neighbouring 16 x 8 results as one 16 x 16 left operand.
template <typename T>
__device__ __forceinline__ void left_of_results(uint32_t (&left)[4], const float (&a)[4], const float (&b)[4]) {
    left[0] = pack<T>(a[0], a[1]);
    left[1] = pack<T>(a[2], a[3]);
    left[2] = pack<T>(b[0], b[1]);
    left[3] = pack<T>(b[2], b[3]);
}

/// 16 x WIDTH results, times `low` and `high` (rows g and g + 8), to a head's tokens from `first` on.
template <typename T, int WIDTH>
__device__ __forceinline__ void store_head(T* all, const float (&c)[WIDTH / 8][4], int tokens, int size, int first, float low, float high) {
    const Head<T> head = head_of<T>(all, tokens, size);
    T* out = const_cast<T*>(head.first);
    const int lane = threadIdx.x % 32, row = first + lane / 4;
#pragma unroll
    for (int n = 0; n < WIDTH / 8; ++n) {
        const int column = n * 8 + lane % 4 * 2;
        if (column >= size) continue;
        if (row < tokens) *reinterpret_cast<uint32_t*>(out + static_cast<size_t>(row) * head.stride + column) = pack<T>(c[n][0] * low, c[n][1] * low);
        if (row + 8 < tokens) *reinterpret_cast<uint32_t*>(out + static_cast<size_t>(row + 8) * head.stride + column) = pack<T>(c[n][2] * high, c[n][3] * high);
    }
}
