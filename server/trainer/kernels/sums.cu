// Sums over rows, and zeros.

#include "elements.cuh"

constexpr int THREADS = 256;
/// Vectors of columns of a block, side by side; the other threads are lanes of rows.
constexpr int TILE = 8;
constexpr int COUNTERS = 4096;

/// Blocks that are done with a tile. Zero between launches: the last block of a tile sees to that. Launches that use them
/// must not run at the same time.
__device__ uint32_t done[COUNTERS];

/// One lane of `lanes` for each column: their total, by thread `column`.
__device__ __forceinline__ float total(const float* lanes, int columns, int count) {
    float sum = 0.0f;
    if (threadIdx.x < columns) {
#pragma unroll 8
        for (int i = 0; i < count; ++i) sum += lanes[i * columns + threadIdx.x];
    }
    return sum;
}

/// Grid: tiles of columns, parts of rows. `parts` F32 `[parts of rows, columns]`, for more than one part.
template <typename T, int N>
__device__ __forceinline__ void column_sums(const T* x, T* sums, float* parts, int rows, int columns, int of_a_part, int add) {
    begin();
    constexpr int COLUMNS = TILE * N, LANES = THREADS / TILE;
    __shared__ float lanes[LANES * COLUMNS];
    __shared__ bool last;
    const int lane = threadIdx.x / TILE, column = (blockIdx.x * TILE + threadIdx.x % TILE) * N;
    const int first = blockIdx.y * of_a_part, end = min(first + of_a_part, rows);
    float sum[N] = {};
    if (column < columns) {
#pragma unroll 4
        for (int row = first + lane; row < end; row += LANES) {
            float values[N];
            load_vector<N>(values, x + static_cast<size_t>(row) * columns + column);
#pragma unroll
            for (int i = 0; i < N; ++i) sum[i] += values[i];
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) lanes[lane * COLUMNS + threadIdx.x % TILE * N + i] = sum[i];
    __syncthreads();
    const int own = blockIdx.x * COLUMNS + threadIdx.x;
    const bool mine = threadIdx.x < COLUMNS && own < columns;
    float all = total(lanes, COLUMNS, LANES);
    if (gridDim.y == 1) {
        if (mine) put_gradient(sums, own, all, add);
        return;
    }
    if (mine) parts[static_cast<size_t>(blockIdx.y) * columns + own] = all;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&done[blockIdx.x], 1) == gridDim.y - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    // Whoever is last adds up in the same order.
    constexpr int SPLIT = THREADS / COLUMNS;
    const int of_tile = threadIdx.x % COLUMNS, at = blockIdx.x * COLUMNS + of_tile;
    float part = 0.0f;
    if (at < columns) {
#pragma unroll 4
        for (int i = threadIdx.x / COLUMNS; i < gridDim.y; i += SPLIT) part += __ldcg(parts + static_cast<size_t>(i) * columns + at);
    }
    lanes[threadIdx.x] = part;
    __syncthreads();
    all = total(lanes, COLUMNS, SPLIT);
    if (mine) put_gradient(sums, own, all, add);
    if (threadIdx.x == 0) done[blockIdx.x] = 0;
}

/// `bytes` and `to` are multiples of 2.
KERNEL(THREADS) zero(void* to, long long bytes) {
    begin();
    const size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * 16;
    char* own = static_cast<char*>(to) + at;
    if (at + 16 <= bytes && reinterpret_cast<size_t>(own) % 16 == 0) {
        *reinterpret_cast<uint4*>(own) = make_uint4(0, 0, 0, 0);
    } else {
        for (int i = 0; i < 16 && at + i < bytes; i += 2) *reinterpret_cast<uint16_t*>(own + i) = 0;
    }
}

#define COLUMN_SUMS(TYPE, SUFFIX, N)                                                                                         \
    KERNEL(THREADS)                                                                                                          \
    column_sums_##N##_##SUFFIX(const TYPE* x, TYPE* sums, float* parts, int rows, int columns, int of_a_part, int add) {     \
        column_sums<TYPE, N>(x, sums, parts, rows, columns, of_a_part, add);                                                 \
    }
COLUMN_SUMS(float, f32, 4)
COLUMN_SUMS(float, f32, 1)
COLUMN_SUMS(__half, f16, 8)
COLUMN_SUMS(__half, f16, 1)
IF_BF16(COLUMN_SUMS(__nv_bfloat16, bf16, 8) COLUMN_SUMS(__nv_bfloat16, bf16, 1))
