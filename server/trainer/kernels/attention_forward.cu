// softmax(q k^T / sqrt(size)) v on tensor cores, without the score matrix in memory: Dao et al. 2022 (arXiv:2205.14135),
// with the order of work of Dao 2023 (arXiv:2307.08691). Softmax and sums in f32.
//
// Grid: blocks of 64 * TILES queries, heads, rows. 128 threads: a warp has 16 * TILES queries.

#include "attention.cuh"

template <typename T, int WIDTH, int TILES, int KEYS>
__device__ __forceinline__ void attention_forward(const T* all_q, const T* all_k, const T* all_v, T* y, float* stats, int size, int queries,
                                                  int keys, int causal) {
    extern __shared__ __align__(16) char shared[];
    T* k_tile = reinterpret_cast<T*>(shared);
    T* v_tile = k_tile + KEYS * pitch(WIDTH);
    const Head<T> q = head_of(all_q, queries, size), k = head_of(all_k, keys, size), v = head_of(all_v, keys, size);
    const int lane = threadIdx.x % 32, first = (blockIdx.x * 4 + threadIdx.x / 32) * 16 * TILES;
    const float scale = LOG2_E * rsqrtf(static_cast<float>(size));

    uint32_t left[TILES][sixteens(WIDTH)][4];
    float out[TILES][WIDTH / 8][4] = {};
    // Of rows g and g + 8 of each tile; the sum is the thread's own part of it until the end.
    float highest[TILES][2], sum[TILES][2] = {};
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        load_left<T, WIDTH>(left[m], q, first + m * 16);
        highest[m][0] = highest[m][1] = -INFINITY;
    }

    int blocks = (keys + KEYS - 1) / KEYS;
    if (causal) blocks = min(blocks, (min(static_cast<int>(blockIdx.x + 1) * 64 * TILES, queries) + KEYS - 1) / KEYS);
    load_tile<T, WIDTH, KEYS>(k_tile, k, 0);
    copies_end_a_group();
    for (int block = 0; block < blocks; ++block) {
        const int first_key = block * KEYS;
        // The keys are there, and nobody reads the values of the last turn any more.
        wait_for_copies<0>();
        __syncthreads();
        load_tile<T, WIDTH, KEYS>(v_tile, v, first_key);
        copies_end_a_group();

        float scores[TILES][KEYS / 8][4] = {};
#pragma unroll
        for (int depth = 0; depth < sixteens(WIDTH); ++depth) {
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                uint32_t right[4];
                right_by_tokens<T, WIDTH>(right, k_tile, n * 16, depth);
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    add_over_columns<T, WIDTH>(scores[m][2 * n], scores[m][2 * n + 1], left[m][depth], right, depth);
                }
            }
        }

        // The values are there, and nobody reads the keys any more.
        wait_for_copies<0>();
        __syncthreads();
        if (block + 1 < blocks) load_tile<T, WIDTH, KEYS>(k_tile, k, first_key + KEYS);
        copies_end_a_group();

        const bool ragged = first_key + KEYS > keys || causal;
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            if (ragged) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int key = first_key + n * 8 + lane % 4 * 2 + i % 2, query = first + m * 16 + lane / 4 + i / 2 * 8;
                        if (key >= keys || (causal && key > query)) scores[m][n][i] = -INFINITY;
                    }
                }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float most = highest[m][half];
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) most = fmaxf(most, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                most = max_of_row(most);
                // A row sees its first keys in the first block, so `most` is finite.
                const float shrink = exp2_fast((highest[m][half] - most) * scale);
                highest[m][half] = most;
                sum[m][half] *= shrink;
#pragma unroll
                for (int n = 0; n < WIDTH / 8; ++n) {
                    out[m][n][2 * half] *= shrink;
                    out[m][n][2 * half + 1] *= shrink;
                }
                const float base = most * scale;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[m][n][i] = exp2_fast(scores[m][n][i] * scale - base);
                        sum[m][half] += scores[m][n][i];
                    }
                }
            }
        }
#pragma unroll
        for (int depth = 0; depth < KEYS / 16; ++depth) {
            uint32_t weights[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; ++m) left_of_results<T>(weights[m], scores[m][2 * depth], scores[m][2 * depth + 1]);
#pragma unroll
            for (int n = 0; n < sixteens(WIDTH); ++n) {
                uint32_t right[4];
                right_by_columns<T, WIDTH>(right, v_tile, depth * 16, n);
#pragma unroll
                for (int m = 0; m < TILES; ++m) add_over_tokens<T, WIDTH>(out[m], weights[m], right, n);
            }
        }
    }
    wait_for_copies<0>();

    const size_t statistics = (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * queries;
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        const float low = sum_of_row(sum[m][0]), high = sum_of_row(sum[m][1]);
        store_head<T, WIDTH>(y, out[m], queries, size, first + m * 16, 1.0f / low, 1.0f / high);
        const int row = first + m * 16 + lane / 4;
        if (lane % 4 == 0) {
            if (row < queries) stats[statistics + row] = highest[m][0] * scale / LOG2_E + logf(low);
            if (row + 8 < queries) stats[statistics + row + 8] = highest[m][1] * scale / LOG2_E + logf(high);
        }
    }
}

#define ATTENTION_FORWARD(TYPE, SUFFIX, WIDTH, TILES, KEYS, BLOCKS)                                                                     \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) attention_forward_##WIDTH##_##SUFFIX(                                      \
        const TYPE* q, const TYPE* k, const TYPE* v, TYPE* y, float* stats, int size, int queries, int keys, int causal) {               \
        begin();                                                                                                                         \
        attention_forward<TYPE, WIDTH, TILES, KEYS>(q, k, v, y, stats, size, queries, keys, causal);                                     \
    }
#define ATTENTION_FORWARD_WIDTHS(TYPE, SUFFIX)          \
    ATTENTION_FORWARD(TYPE, SUFFIX, 32, 2, 64, 2)       \
    ATTENTION_FORWARD(TYPE, SUFFIX, 40, 2, 128, 2)      \
    ATTENTION_FORWARD(TYPE, SUFFIX, 64, 2, 64, 2)       \
    ATTENTION_FORWARD(TYPE, SUFFIX, 80, 1, 64, 2)       \
    ATTENTION_FORWARD(TYPE, SUFFIX, 160, 1, 64, 1)

ATTENTION_FORWARD_WIDTHS(__half, f16)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
ATTENTION_FORWARD_WIDTHS(__nv_bfloat16, bf16)
#endif
