// Gradients of attention on tensor cores, without the score matrix in memory (Dao 2023, arXiv:2307.08691): the scores are made
// again from q, k and the forward's log-sum-exp. Two kernels, so that no sum depends on the order in which blocks happen to end:
// one has a block of queries and walks the keys (dq), the other has a block of keys and walks the queries (dk, dv).
//
//   p = exp(q k^T / sqrt(size) - lse), dp = dy v^T, delta = sum(dy * y) per query
//   ds = p * (dp - delta), dq = ds k / sqrt(size), dk = ds^T q / sqrt(size), dv = p^T dy

#include "attention.cuh"

/// Grid: blocks of 64 * TILES queries, heads, rows; 128 threads. Writes `delta` `[rows, heads, queries]` for the other kernel.
template <typename T, int WIDTH, int TILES, int KEYS>
__device__ __forceinline__ void attention_backward_q(const T* all_dy, const T* all_q, const T* all_k, const T* all_v, const T* all_y,
                                                     const float* stats, float* delta, T* dq, int size, int queries, int keys, int causal) {
    extern __shared__ __align__(16) char shared[];
    constexpr int TILE = KEYS * pitch(WIDTH);
    // Two stages of keys and values.
    T* tiles = reinterpret_cast<T*>(shared);
    const Head<T> q = head_of(all_q, queries, size), k = head_of(all_k, keys, size), v = head_of(all_v, keys, size);
    const Head<T> dy = head_of(all_dy, queries, size), y = head_of(all_y, queries, size);
    const int lane = threadIdx.x % 32, first = (blockIdx.x * 4 + threadIdx.x / 32) * 16 * TILES;
    const float root = rsqrtf(static_cast<float>(size)), scale = LOG2_E * root;
    const size_t statistics = (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * queries;

    int blocks = (keys + KEYS - 1) / KEYS;
    if (causal) blocks = min(blocks, (min(static_cast<int>(blockIdx.x + 1) * 64 * TILES, queries) + KEYS - 1) / KEYS);
    load_tile<T, WIDTH, KEYS>(tiles, k, 0);
    load_tile<T, WIDTH, KEYS>(tiles + TILE, v, 0);
    copies_end_a_group();

    uint32_t left_q[TILES][sixteens(WIDTH)][4], left_dy[TILES][sixteens(WIDTH)][4];
    float out[TILES][WIDTH / 8][4] = {};
    float lse[TILES][2], row_delta[TILES][2];
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        load_left<T, WIDTH>(left_q[m], q, first + m * 16);
        load_left<T, WIDTH>(left_dy[m], dy, first + m * 16);
        float sums[2] = {0.0f, 0.0f};
        const int row = first + m * 16 + lane / 4;
#pragma unroll
        for (int depth = 0; depth < sixteens(WIDTH); ++depth) {
#pragma unroll
            for (int i = 0; i < (halved(WIDTH, depth) ? 2 : 4); ++i) {
                const float2 a = unpack<T>(left_dy[m][depth][i]);
                const float2 b = unpack<T>(pair_at(y, row + i % 2 * 8, depth * 16 + i / 2 * 8 + lane % 4 * 2));
                sums[i % 2] += a.x * b.x + a.y * b.y;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            row_delta[m][half] = sum_of_row(sums[half]);
            const int query = row + half * 8;
            lse[m][half] = query < queries ? stats[statistics + query] * LOG2_E : INFINITY;
            if (lane % 4 == 0 && query < queries) delta[statistics + query] = row_delta[m][half];
        }
    }

    for (int block = 0; block < blocks; ++block) {
        const int first_key = block * KEYS;
        const T* k_tile = tiles + block % 2 * 2 * TILE;
        const T* v_tile = k_tile + TILE;
        // This turn's tiles are there, and nobody reads those of the last turn any more.
        wait_for_copies<0>();
        __syncthreads();
        if (block + 1 < blocks) {
            T* next = tiles + (block + 1) % 2 * 2 * TILE;
            load_tile<T, WIDTH, KEYS>(next, k, first_key + KEYS);
            load_tile<T, WIDTH, KEYS>(next + TILE, v, first_key + KEYS);
        }
        copies_end_a_group();
        const bool ragged = first_key + KEYS > keys || causal;
        // Sixteen keys at a time keep scores and their gradients in few registers.
#pragma unroll
        for (int chunk = 0; chunk < KEYS / 16; ++chunk) {
            // Of dp - delta.
            float scores[TILES][2][4] = {}, dp[TILES][2][4];
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int i = 0; i < 8; ++i) dp[m][i / 4][i % 4] = -row_delta[m][i / 2 % 2];
            }
#pragma unroll
            for (int depth = 0; depth < sixteens(WIDTH); ++depth) {
                uint32_t right_k[4], right_v[4];
                right_by_tokens<T, WIDTH>(right_k, k_tile, chunk * 16, depth);
                right_by_tokens<T, WIDTH>(right_v, v_tile, chunk * 16, depth);
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    add_over_columns<T, WIDTH>(scores[m][0], scores[m][1], left_q[m][depth], right_k, depth);
                    add_over_columns<T, WIDTH>(dp[m][0], dp[m][1], left_dy[m][depth], right_v, depth);
                }
            }
            uint32_t left_ds[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int n = 0; n < 2; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float p = exp2_fast(scores[m][n][i] * scale - lse[m][i / 2]);
                        if (ragged) {
                            const int key = first_key + chunk * 16 + n * 8 + lane % 4 * 2 + i % 2, query = first + m * 16 + lane / 4 + i / 2 * 8;
                            if (key >= keys || (causal && key > query)) p = 0.0f;
                        }
                        scores[m][n][i] = p * dp[m][n][i];
                    }
                }
                left_of_results<T>(left_ds[m], scores[m][0], scores[m][1]);
            }
#pragma unroll
            for (int n = 0; n < sixteens(WIDTH); ++n) {
                uint32_t right[4];
                right_by_columns<T, WIDTH>(right, k_tile, chunk * 16, n);
#pragma unroll
                for (int m = 0; m < TILES; ++m) add_over_tokens<T, WIDTH>(out[m], left_ds[m], right, n);
            }
        }
    }
    wait_for_copies<0>();
#pragma unroll
    for (int m = 0; m < TILES; ++m) store_head<T, WIDTH>(dq, out[m], queries, size, first + m * 16, root, root);
}

/// 16 x WIDTH sums in f32, to one part's `[rows, tokens, heads * size]`.
template <int WIDTH>
__device__ __forceinline__ void store_part(float* all, const float (&c)[WIDTH / 8][4], int part, int tokens, int size, int first, float scale) {
    const int stride = gridDim.y * size, lane = threadIdx.x % 32;
    float* out = all + (static_cast<size_t>(part) * gridDim.z + blockIdx.z) * tokens * stride + blockIdx.y * size;
#pragma unroll
    for (int n = 0; n < WIDTH / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = first + lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
            if (row < tokens && column < size) out[static_cast<size_t>(row) * stride + column] = c[n][i] * scale;
        }
    }
}

/// Grid: blocks of 64 * TILES keys times `parts` of the queries, heads, rows; 128 threads. With one part `dk` and `dv` are written,
/// with more `parts_k` and `parts_v` `[parts, rows, keys, heads * size]` in f32, which `attention_sum_parts` adds up: few keys alone
/// would leave most of the GPU idle. Where keys and values are too wide for registers they are kept in shared memory (`KEPT`).
template <typename T, int WIDTH, int TILES, int QUERIES, bool KEPT>
__device__ __forceinline__ void attention_backward_kv(const T* all_dy, const T* all_q, const T* all_k, const T* all_v, const float* stats,
                                                      const float* delta, T* dk, T* dv, float* parts_k, float* parts_v, int parts, int size,
                                                      int queries, int keys, int causal) {
    extern __shared__ __align__(16) char shared[];
    constexpr int TILE = QUERIES * pitch(WIDTH), STAGES = KEPT ? 1 : 2, OWN = KEPT ? 64 * TILES * pitch(WIDTH) : 0;
    T* own_k = reinterpret_cast<T*>(shared);
    T* own_v = own_k + OWN;
    // Stages of queries and upstream gradients, then of log-sum-exp and delta.
    T* tiles = own_v + OWN;
    float* rows = reinterpret_cast<float*>(tiles + STAGES * 2 * TILE);
    const Head<T> q = head_of(all_q, queries, size), dy = head_of(all_dy, queries, size);
    const Head<T> k = head_of(all_k, keys, size), v = head_of(all_v, keys, size);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int block_of_keys = blockIdx.x / parts, part = blockIdx.x % parts;
    const int first = (block_of_keys * 4 + warp) * 16 * TILES;
    const float root = rsqrtf(static_cast<float>(size)), scale = LOG2_E * root;
    const size_t statistics = (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * queries;

    const int all_blocks = (queries + QUERIES - 1) / QUERIES, each = (all_blocks + parts - 1) / parts;
    // Queries before the first key see none of this block's keys.
    const int least = causal ? block_of_keys * 64 * TILES / QUERIES : 0;
    const int begin = max(part * each, least), end = min((part + 1) * each, all_blocks);

    uint32_t left_k[KEPT ? 1 : TILES][KEPT ? 1 : sixteens(WIDTH)][4], left_v[KEPT ? 1 : TILES][KEPT ? 1 : sixteens(WIDTH)][4];
    if constexpr (KEPT) {
        load_tile<T, WIDTH, 64 * TILES>(own_k, k, block_of_keys * 64 * TILES);
        load_tile<T, WIDTH, 64 * TILES>(own_v, v, block_of_keys * 64 * TILES);
    } else {
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            load_left<T, WIDTH>(left_k[m], k, first + m * 16);
            load_left<T, WIDTH>(left_v[m], v, first + m * 16);
        }
    }
    float out_k[TILES][WIDTH / 8][4] = {}, out_v[TILES][WIDTH / 8][4] = {};

    auto load = [&](int block) {
        const int stage = KEPT ? 0 : block % 2;
        load_tile<T, WIDTH, QUERIES>(tiles + stage * 2 * TILE, q, block * QUERIES);
        load_tile<T, WIDTH, QUERIES>(tiles + stage * 2 * TILE + TILE, dy, block * QUERIES);
        for (int i = threadIdx.x; i < QUERIES; i += blockDim.x) {
            const int query = block * QUERIES + i;
            // exp of minus infinity: no weight for queries that are not there.
            rows[stage * 2 * QUERIES + i] = query < queries ? stats[statistics + query] * LOG2_E : INFINITY;
            rows[stage * 2 * QUERIES + QUERIES + i] = query < queries ? delta[statistics + query] : 0.0f;
        }
        copies_end_a_group();
    };
    if (begin < end) load(begin);
    for (int block = begin; block < end; ++block) {
        const int stage = KEPT ? 0 : block % 2, first_query = block * QUERIES;
        const T* q_tile = tiles + stage * 2 * TILE;
        const T* dy_tile = q_tile + TILE;
        const float* lse = rows + stage * 2 * QUERIES;
        const float* deltas = lse + QUERIES;
        wait_for_copies<0>();
        __syncthreads();
        if (!KEPT && block + 1 < end) load(block + 1);
        // Sixteen queries at a time.
#pragma unroll
        for (int chunk = 0; chunk < QUERIES / 16; ++chunk) {
            // Of dp - delta.
            float scores[TILES][2][4] = {}, dp[TILES][2][4];
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float2 column_delta = *reinterpret_cast<const float2*>(deltas + chunk * 16 + n * 8 + lane % 4 * 2);
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    dp[m][n][0] = dp[m][n][2] = -column_delta.x;
                    dp[m][n][1] = dp[m][n][3] = -column_delta.y;
                }
            }
#pragma unroll
            for (int depth = 0; depth < sixteens(WIDTH); ++depth) {
                uint32_t right_q[4], right_dy[4];
                right_by_tokens<T, WIDTH>(right_q, q_tile, chunk * 16, depth);
                right_by_tokens<T, WIDTH>(right_dy, dy_tile, chunk * 16, depth);
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    uint32_t loaded_k[4], loaded_v[4];
                    if constexpr (KEPT) {
                        left_of_tile<T, WIDTH>(loaded_k, own_k, (warp * TILES + m) * 16, depth);
                        left_of_tile<T, WIDTH>(loaded_v, own_v, (warp * TILES + m) * 16, depth);
                    }
                    const uint32_t(&a_k)[4] = KEPT ? loaded_k : left_k[KEPT ? 0 : m][KEPT ? 0 : depth];
                    const uint32_t(&a_v)[4] = KEPT ? loaded_v : left_v[KEPT ? 0 : m][KEPT ? 0 : depth];
                    add_over_columns<T, WIDTH>(scores[m][0], scores[m][1], a_k, right_q, depth);
                    add_over_columns<T, WIDTH>(dp[m][0], dp[m][1], a_v, right_dy, depth);
                }
            }
            uint32_t left_p[TILES][4], left_ds[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const int column = chunk * 16 + n * 8 + lane % 4 * 2;
                    const float2 column_lse = *reinterpret_cast<const float2*>(lse + column);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float p = exp2_fast(scores[m][n][i] * scale - (i % 2 ? column_lse.y : column_lse.x));
                        // Keys that are not there have weights that may be anything, but those reach only rows that nobody stores.
                        if (causal && first + m * 16 + lane / 4 + i / 2 * 8 > first_query + column + i % 2) p = 0.0f;
                        dp[m][n][i] *= p;
                        scores[m][n][i] = p;
                    }
                }
                left_of_results<T>(left_p[m], scores[m][0], scores[m][1]);
                left_of_results<T>(left_ds[m], dp[m][0], dp[m][1]);
            }
#pragma unroll
            for (int n = 0; n < sixteens(WIDTH); ++n) {
                uint32_t right_q[4], right_dy[4];
                right_by_columns<T, WIDTH>(right_q, q_tile, chunk * 16, n);
                right_by_columns<T, WIDTH>(right_dy, dy_tile, chunk * 16, n);
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    add_over_tokens<T, WIDTH>(out_k[m], left_ds[m], right_q, n);
                    add_over_tokens<T, WIDTH>(out_v[m], left_p[m], right_dy, n);
                }
            }
        }
        if (KEPT && block + 1 < end) {
            __syncthreads();
            load(block + 1);
        }
    }
    wait_for_copies<0>();
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        if (parts == 1) {
            store_head<T, WIDTH>(dk, out_k[m], keys, size, first + m * 16, root, root);
            store_head<T, WIDTH>(dv, out_v[m], keys, size, first + m * 16, 1.0f, 1.0f);
        } else {
            store_part<WIDTH>(parts_k, out_k[m], part, keys, size, first + m * 16, root);
            store_part<WIDTH>(parts_v, out_v[m], part, keys, size, first + m * 16, 1.0f);
        }
    }
}

/// `dk` and `dv` `[count]` from their parts, in the order of the parts. Grid: blocks of 256 elements, 2.
template <typename T>
__device__ __forceinline__ void attention_sum_parts(const float* parts_k, const float* parts_v, T* dk, T* dv, int parts, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float* from = blockIdx.y ? parts_v : parts_k;
    float sum = 0.0f;
    for (int part = 0; part < parts; ++part) sum += from[static_cast<size_t>(part) * count + i];
    (blockIdx.y ? dv : dk)[i] = static_cast<T>(sum);
}

#define ATTENTION_BACKWARD(TYPE, SUFFIX, WIDTH, TILES, STEP, KEPT, BLOCKS_Q, BLOCKS_KV)                                                               \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS_Q) attention_backward_q_##WIDTH##_##SUFFIX(                                             \
        const TYPE* dy, const TYPE* q, const TYPE* k, const TYPE* v, const TYPE* y, const float* stats, float* delta, TYPE* dq, int size,  \
        int queries, int keys, int causal) {                                                                                               \
        begin();                                                                                                                           \
        attention_backward_q<TYPE, WIDTH, TILES, STEP>(dy, q, k, v, y, stats, delta, dq, size, queries, keys, causal);                     \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS_KV) attention_backward_kv_##WIDTH##_##SUFFIX(                                            \
        const TYPE* dy, const TYPE* q, const TYPE* k, const TYPE* v, const float* stats, const float* delta, TYPE* dk, TYPE* dv,           \
        float* parts_k, float* parts_v, int parts, int size, int queries, int keys, int causal) {                                          \
        begin();                                                                                                                           \
        attention_backward_kv<TYPE, WIDTH, TILES, STEP, KEPT>(dy, q, k, v, stats, delta, dk, dv, parts_k, parts_v, parts, size, queries,   \
                                                              keys, causal);                                                               \
    }
#define ATTENTION_BACKWARD_WIDTHS(TYPE, SUFFIX)                                                                                            \
    ATTENTION_BACKWARD(TYPE, SUFFIX, 32, 2, 64, false, 2, 2)                                                                                     \
    ATTENTION_BACKWARD(TYPE, SUFFIX, 40, 1, 128, false, 4, 4)                                                                                     \
    ATTENTION_BACKWARD(TYPE, SUFFIX, 64, 1, 64, false, 2, 2)                                                                                     \
    ATTENTION_BACKWARD(TYPE, SUFFIX, 80, 1, 64, false, 2, 2)                                                                                     \
    ATTENTION_BACKWARD(TYPE, SUFFIX, 160, 1, 32, true, 1, 1)                                                                                     \
    extern "C" __global__ void attention_sum_parts_##SUFFIX(const float* parts_k, const float* parts_v, TYPE* dk, TYPE* dv, int parts,     \
                                                            int count) {                                                                   \
        begin();                                                                                                                           \
        attention_sum_parts<TYPE>(parts_k, parts_v, dk, dv, parts, count);                                                                 \
    }

ATTENTION_BACKWARD_WIDTHS(__half, f16)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
ATTENTION_BACKWARD_WIDTHS(__nv_bfloat16, bf16)
#endif
