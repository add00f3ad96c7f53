// The update of all trained weights: norm of the gradients, then AdamW over flat arenas, with moments in f32 or in blocks of 256
// codes of 8 bits. `engine/optim` has the formulas and `engine/cuda/calls/optimizer.rs` the layout of what is read here.

#include "optimizer.cuh"

// An exact weight, from what lies beside its copy.

template <int N>
__device__ __forceinline__ void load_master(float (&p)[N], const float* copy, const void*, size_t at) {
    load_vector<N>(p, copy + at);
}

template <int N>
__device__ __forceinline__ void store_master(const float (&p)[N], float* copy, void*, size_t at) {
    store_vector<N>(copy + at, p);
}

template <int N>
__device__ __forceinline__ void load_master(float (&p)[N], const __half*, const void* rest, size_t at) {
    load_vector<N>(p, static_cast<const float*>(rest) + at);
}

template <int N>
__device__ __forceinline__ void store_master(const float (&p)[N], __half* copy, void* rest, size_t at) {
    store_vector<N>(static_cast<float*>(rest) + at, p);
    store_vector<N>(copy + at, p);
}

/// bits = (copy << 16) + rest, the rest with its sign.
__device__ __forceinline__ float join(uint32_t high, uint32_t low) {
    return __uint_as_float((high << 16) + static_cast<uint32_t>(static_cast<int>(static_cast<int16_t>(low))));
}

/// What is added to an f32's bits so that their upper half is the nearest bf16, halves away from zero.
constexpr uint32_t HALF = 0x8000;

template <int N>
__device__ __forceinline__ void load_master(float (&p)[N], const __nv_bfloat16* copy, const void* rest, size_t at) {
    const auto high = *reinterpret_cast<const Packed<uint32_t, N / 2>*>(copy + at);
    const auto low = *reinterpret_cast<const Packed<uint32_t, N / 2>*>(static_cast<const uint16_t*>(rest) + at);
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        p[i] = join(high.values[i / 2], low.values[i / 2]);
        p[i + 1] = join(high.values[i / 2] >> 16, low.values[i / 2] >> 16);
    }
}

template <int N>
__device__ __forceinline__ void store_master(const float (&p)[N], __nv_bfloat16* copy, void* rest, size_t at) {
    Packed<uint32_t, N / 2> high, low;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        const uint32_t a = __float_as_uint(p[i]), b = __float_as_uint(p[i + 1]);
        high.values[i / 2] = __byte_perm(a + HALF, b + HALF, 0x7632);
        low.values[i / 2] = __byte_perm(a, b, 0x5410);
    }
    *reinterpret_cast<Packed<uint32_t, N / 2>*>(copy + at) = high;
    *reinterpret_cast<Packed<uint32_t, N / 2>*>(static_cast<uint16_t*>(rest) + at) = low;
}

__device__ __forceinline__ void load_master(float (&p)[1], const __nv_bfloat16* copy, const void* rest, size_t at) {
    p[0] = join(reinterpret_cast<const uint16_t*>(copy)[at], static_cast<const uint16_t*>(rest)[at]);
}

__device__ __forceinline__ void store_master(const float (&p)[1], __nv_bfloat16* copy, void* rest, size_t at) {
    const uint32_t bits = __float_as_uint(p[0]);
    reinterpret_cast<uint16_t*>(copy)[at] = static_cast<uint16_t>((bits + HALF) >> 16);
    static_cast<uint16_t*>(rest)[at] = static_cast<uint16_t>(bits);
}

/// Sums of squares by block, of the groups that have a learning rate.
template <typename T, int N>
__device__ __forceinline__ void squares(const T* gradients, const uint8_t* groups, const Numbers* numbers, float* sums, long long len) {
    begin();
    uint32_t present = 0;
#pragma unroll
    for (int i = 0; i < 3; ++i) present |= (numbers->groups[i].present != 0.0f ? 1u : 0u) << i;
    float sum = 0.0f;
#pragma unroll 4
    for (size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * N; at < len; at += static_cast<size_t>(gridDim.x) * THREADS * N) {
        float values[N], own = 0.0f;
        load_vector<N>(values, gradients + at);
#pragma unroll
        for (int i = 0; i < N; ++i) own += values[i] * values[i];
        if (present >> groups[at / BLOCK] & 1) sum += own;
    }
    sum = sum_of_threads(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// The norm, and what gradients are multiplied by. One block.
KERNEL(THREADS) clip(const float* sums, const Numbers* numbers, Result* result, int count) {
    begin();
    const double sum = sum_of_all(sums, count);
    if (threadIdx.x > 0) return;
    result->norm = static_cast<float>(sqrt(sum) / numbers->loss_scale);
    result->factor = static_cast<float>(factor_of(sum, numbers));
    result->finite = isfinite(sum) ? 1.0f : 0.0f;
}

/// Moments in f32. TORCH: as torch.optim.AdamW rounds, else as bitsandbytes does for small tensors.
template <typename T, bool TORCH>
__device__ __forceinline__ void adamw(T* weights, void* rests, const T* gradients, float* first, float* second, const uint8_t* groups,
                                      const Numbers* numbers, const Result* result, long long len) {
    begin();
    constexpr int N = 4;
    const size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * N;
    if (at >= len || result->finite == 0.0f) return;
    const auto rates = numbers->groups[groups[at / BLOCK]];
    if (rates.present == 0.0f) return;
    const Numbers all = *numbers;
    const float factor = result->factor;
    float p[N], g[N], m[N], v[N];
    load_master(p, weights, rests, at);
    load_vector<N>(g, gradients + at);
    load_vector<N>(m, first + at);
    load_vector<N>(v, second + at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        g[i] *= factor;
        if (TORCH) {
            m[i] += (g[i] - m[i]) * all.fresh1;
            v[i] = v[i] * all.beta2 + g[i] * g[i] * all.fresh2;
            p[i] = p[i] * rates.keep - rates.step * (m[i] / (sqrtf(v[i]) / all.root2 + all.epsilon));
        } else {
            m[i] = m[i] * all.beta1 + all.fresh1 * g[i];
            v[i] = v[i] * all.beta2 + all.fresh2 * g[i] * g[i];
            p[i] = (p[i] + rates.step * (m[i] / (sqrtf(v[i]) + all.epsilon))) * rates.keep;
        }
    }
    store_master(p, weights, rests, at);
    store_vector<N>(first + at, m);
    store_vector<N>(second + at, v);
}

/// Moments in 8 bits. A warp has a block at a time.
template <typename T>
__device__ __forceinline__ void adamw_8bit(T* weights, void* rests, const T* gradients, uint8_t* first_codes, float* first_largest,
                                           uint8_t* second_codes, float* second_largest, const uint8_t* groups, const Tables* all_tables,
                                           const Numbers* numbers, const Result* result, int blocks) {
    begin();
    constexpr int N = BLOCK / 32;
    __shared__ Tables tables;
    if (result->finite == 0.0f) return;
    copy_tables(tables, all_tables);
    const Numbers all = *numbers;
    const float factor = result->factor;
    const Coded moments = {first_codes, second_codes, first_largest, second_largest};
    const int lane = threadIdx.x % 32, stride = gridDim.x * (THREADS / 32);
    for (int block = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; block < blocks; block += stride) {
        const size_t at = static_cast<size_t>(block) * BLOCK + lane * N;
        const auto load = [&](float (&p)[N], float (&g)[N]) {
            load_vector<N>(g, gradients + at);
            load_master(p, weights, rests, at);
        };
        const auto store = [&](const float (&p)[N]) { store_master(p, weights, rests, at); };
        update_block(tables, moments, block, at, factor, all, numbers, groups[block], load, store);
    }
}

template <typename T>
__device__ __forceinline__ void split_master(const float* from, T* copy, void* rest, long long len) {
    begin();
    const size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= len) return;
    const float p[1] = {from[at]};
    if (rest || sizeof(T) == 4) {
        store_master(p, copy, rest, at);
    } else {
        copy[at] = static_cast<T>(p[0]);
    }
}

template <typename T>
__device__ __forceinline__ void join_master(const T* copy, const void* rest, float* to, long long len) {
    begin();
    const size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= len) return;
    float p[1] = {static_cast<float>(copy[at])};
    if (rest) load_master(p, copy, rest, at);
    to[at] = p[0];
}

/// Grid: N elements a thread. 1 copies, so that what lies there at first does not matter.
template <typename T, int N>
__device__ __forceinline__ void follow_master(const T* copy, const void* rest, float* averages, float fresh, long long len) {
    begin();
    const size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * N;
    if (at >= len) return;
    float p[N], a[N];
    load_master(p, copy, rest, at);
    load_vector<N>(a, averages + at);
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] = fresh == 1.0f ? p[i] : a[i] - fresh * (a[i] - p[i]);
    store_vector<N>(averages + at, a);
}

template <typename T, int N>
__device__ __forceinline__ void exchange_master(T* copy, void* rest, float* averages, long long len) {
    begin();
    const size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * N;
    if (at >= len) return;
    float p[N], a[N];
    load_master(p, copy, rest, at);
    load_vector<N>(a, averages + at);
    store_master(a, copy, rest, at);
    store_vector<N>(averages + at, p);
}

// Gradients of several programs, added up in f32: the first makes the sums, the last puts them in the gradients' place.
template <typename T, int N>
__device__ __forceinline__ void add_gradients(T* gradients, float* sums, int first, int last, long long len) {
    begin();
    const size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * N;
    if (at >= len) return;
    float g[N], sum[N];
    load_vector<N>(g, gradients + at);
    if (!first) {
        load_vector<N>(sum, sums + at);
#pragma unroll
        for (int i = 0; i < N; ++i) g[i] += sum[i];
    }
    if (last) {
        store_vector<N>(gradients + at, g);
    } else {
        store_vector<N>(sums + at, g);
    }
}

#define OPTIMIZER(TYPE, SUFFIX, N)                                                                                           \
    KERNEL(THREADS)                                                                                                          \
    squares_##SUFFIX(const TYPE* gradients, const uint8_t* groups, const Numbers* numbers, float* sums, long long len) {     \
        squares<TYPE, N>(gradients, groups, numbers, sums, len);                                                             \
    }                                                                                                                        \
    ADAMW(adamw, true, TYPE, SUFFIX)                                                                                         \
    ADAMW(adamw_small, false, TYPE, SUFFIX)                                                                                  \
    KERNEL(THREADS)                                                                                                          \
    adamw_8bit_##SUFFIX(TYPE* weights, void* rests, const TYPE* gradients, uint8_t* first_codes, float* first_largest,       \
                        uint8_t* second_codes, float* second_largest, const uint8_t* groups, const Tables* tables,           \
                        const Numbers* numbers, const Result* result, int blocks) {                                          \
        adamw_8bit<TYPE>(weights, rests, gradients, first_codes, first_largest, second_codes, second_largest, groups,        \
                         tables, numbers, result, blocks);                                                                   \
    }                                                                                                                        \
    KERNEL(THREADS) split_master_##SUFFIX(const float* from, TYPE* copy, void* rest, long long len) {                        \
        split_master<TYPE>(from, copy, rest, len);                                                                           \
    }                                                                                                                        \
    KERNEL(THREADS) join_master_##SUFFIX(const TYPE* copy, const void* rest, float* to, long long len) {                     \
        join_master<TYPE>(copy, rest, to, len);                                                                              \
    }                                                                                                                        \
    KERNEL(THREADS)                                                                                                          \
    follow_master_##SUFFIX(const TYPE* copy, const void* rest, float* averages, float fresh, long long len) {                \
        follow_master<TYPE, N>(copy, rest, averages, fresh, len);                                                            \
    }                                                                                                                        \
    KERNEL(THREADS) exchange_master_##SUFFIX(TYPE* copy, void* rest, float* averages, long long len) {                       \
        exchange_master<TYPE, N>(copy, rest, averages, len);                                                                 \
    }                                                                                                                        \
    KERNEL(THREADS) add_gradients_##SUFFIX(TYPE* gradients, float* sums, int first, int last, long long len) {               \
        add_gradients<TYPE, N>(gradients, sums, first, last, len);                                                           \
    }
#define ADAMW(NAME, TORCH, TYPE, SUFFIX)                                                                                     \
    KERNEL(THREADS)                                                                                                          \
    NAME##_##SUFFIX(TYPE* weights, void* rests, const TYPE* gradients, float* first, float* second, const uint8_t* groups,   \
                    const Numbers* numbers, const Result* result, long long len) {                                           \
        adamw<TYPE, TORCH>(weights, rests, gradients, first, second, groups, numbers, result, len);                          \
    }
OPTIMIZER(float, f32, 4)
OPTIMIZER(__half, f16, 8)
IF_BF16(OPTIMIZER(__nv_bfloat16, bf16, 8))
