// The update of all trained weights: norm of the gradients, then AdamW over flat arenas, with moments in f32 or in blocks of 256
// codes of 8 bits. `engine/optim` has the formulas and `engine/cuda/calls/optimizer.rs` the layout of what is read here.

#include "elements.cuh"

constexpr int THREADS = 256;
constexpr int BLOCK = 256;

/// The numbers of an update, as the host writes them.
struct Numbers {
    float loss_scale, max_norm, beta1, beta2, fresh1, fresh2, epsilon, root2;
    struct {
        /// 0 where the group has no learning rate.
        float present, keep, step;
    } groups[3];
};

/// What an update reports.
struct Result {
    float norm, factor, finite;
};

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
template <int N>
__device__ __forceinline__ void load_master(float (&p)[N], const __nv_bfloat16* copy, const void* rest, size_t at) {
    const Packed<uint16_t, N> high = *reinterpret_cast<const Packed<uint16_t, N>*>(copy + at);
    const Packed<int16_t, N> low = *reinterpret_cast<const Packed<int16_t, N>*>(static_cast<const int16_t*>(rest) + at);
#pragma unroll
    for (int i = 0; i < N; ++i) p[i] = __int_as_float((static_cast<int>(high.values[i]) << 16) + low.values[i]);
}

template <int N>
__device__ __forceinline__ void store_master(const float (&p)[N], __nv_bfloat16* copy, void* rest, size_t at) {
    Packed<uint16_t, N> high;
    Packed<int16_t, N> low;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const uint32_t bits = __float_as_uint(p[i]);
        high.values[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
        low.values[i] = static_cast<int16_t>(bits);
    }
    *reinterpret_cast<Packed<uint16_t, N>*>(copy + at) = high;
    *reinterpret_cast<Packed<int16_t, N>*>(static_cast<int16_t*>(rest) + at) = low;
}

/// Sums of squares by block, of the groups that have a learning rate.
template <typename T, int N>
__device__ __forceinline__ void squares(const T* gradients, const uint8_t* groups, const Numbers* numbers, float* sums, long long len) {
    __shared__ float warps[THREADS / 32];
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
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < THREADS / 32; ++i) sum += warps[i];
    sums[blockIdx.x] = sum;
}

/// The norm, and what gradients are multiplied by. One block.
KERNEL(THREADS) clip(const float* sums, const Numbers* numbers, Result* result, int count) {
    __shared__ double lanes[THREADS];
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += sums[i];
    lanes[threadIdx.x] = sum;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) lanes[threadIdx.x] += lanes[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x > 0) return;
    const double scale = numbers->loss_scale, most = numbers->max_norm, norm = sqrt(lanes[0]) / scale;
    const double kept = most > 0.0 ? fmin(most / (norm + 1e-6), 1.0) : 1.0;
    result->norm = static_cast<float>(norm);
    result->factor = static_cast<float>(kept / scale);
    result->finite = isfinite(lanes[0]) ? 1.0f : 0.0f;
}

/// Moments in f32. TORCH: as torch.optim.AdamW rounds, else as bitsandbytes does for small tensors.
template <typename T, bool TORCH>
__device__ __forceinline__ void adamw(T* weights, void* rests, const T* gradients, float* first, float* second, const uint8_t* groups,
                                      const Numbers* numbers, const Result* result, long long len) {
    constexpr int N = 4;
    const size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * N;
    if (at >= len || result->finite == 0.0f) return;
    const auto rates = numbers->groups[groups[at / BLOCK]];
    if (rates.present == 0.0f) return;
    const Numbers all = *numbers;
    const float factor = result->factor;
    float p[N], g[N], m[N], v[N];
    load_master<N>(p, weights, rests, at);
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
    store_master<N>(p, weights, rests, at);
    store_vector<N>(first + at, m);
    store_vector<N>(second + at, v);
}

/// Powers of two below 1 that the index of boundaries tells apart.
constexpr int OCTAVES = 23;
constexpr int CELLS = (OCTAVES + 1) * 128;

/// A code's entries, the boundaries between them, and by the leading bits of a value the lowest code it can have.
struct Code {
    float values[256], boundaries[256];
};

struct Tables {
    Code first, second;
    uint8_t first_index[CELLS], second_index[CELLS];
};

/// The entry nearest to `value`, which is at most 1 apart from rounding. BITS: of the fraction that the index goes by.
template <int BITS>
__device__ __forceinline__ uint32_t nearest(const Code& code, const uint8_t* index, float value) {
    constexpr int FIRST = (127 - OCTAVES) << BITS, OF_A_SIGN = (OCTAVES + 1) << BITS;
    const uint32_t bits = __float_as_uint(value);
    const int cell = min(max(static_cast<int>((bits & 0x7fffffffu) >> (23 - BITS)) - FIRST, 0), OF_A_SIGN - 1);
    // The unsigned code has no negative values.
    const uint32_t base = index[BITS == 6 && bits >> 31 ? cell + OF_A_SIGN : cell];
    return base + (code.boundaries[base] < value ? 1 : 0);
}

/// Of values that are not negative.
__device__ __forceinline__ float largest_of_warp(float x) {
#if __CUDA_ARCH__ >= 800
    // Such floats are ordered as their bits are.
    return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(x)));
#else
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
#endif
}

/// What brings values of at most `largest` to at most 1. Below the normal numbers everything counts as nothing.
__device__ __forceinline__ float inverse(float largest) { return largest >= 1.17549435e-38f ? 1.0f / largest : 0.0f; }

/// Moments in 8 bits. A warp has a block of 256 elements, a lane eight neighbouring ones.
template <typename T>
__device__ __forceinline__ void adamw_8bit(T* weights, void* rests, const T* gradients, uint8_t* first_codes, float* first_largest,
                                           uint8_t* second_codes, float* second_largest, const uint8_t* groups, const Tables* all_tables,
                                           const Numbers* numbers, const Result* result, int blocks) {
    constexpr int N = BLOCK / 32;
    __shared__ Tables tables;
    static_assert(sizeof(Tables) % 4 == 0, "copied in words");
    if (result->finite == 0.0f) return;
    for (int i = threadIdx.x; i < sizeof(Tables) / 4; i += THREADS) {
        reinterpret_cast<uint32_t*>(&tables)[i] = reinterpret_cast<const uint32_t*>(all_tables)[i];
    }
    __syncthreads();
    const Numbers all = *numbers;
    const float factor = result->factor;
    const int lane = threadIdx.x % 32, stride = gridDim.x * (THREADS / 32);
    for (int block = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; block < blocks; block += stride) {
        const int group = groups[block];
        const float keep = numbers->groups[group].keep, step = numbers->groups[group].step;
        if (numbers->groups[group].present == 0.0f) continue;
        const size_t at = static_cast<size_t>(block) * BLOCK + lane * N;
        float p[N], g[N], m[N], v[N];
        Packed<uint8_t, N> code1 = *reinterpret_cast<const Packed<uint8_t, N>*>(first_codes + at);
        Packed<uint8_t, N> code2 = *reinterpret_cast<const Packed<uint8_t, N>*>(second_codes + at);
        const float largest1 = first_largest[block], largest2 = second_largest[block];
        load_vector<N>(g, gradients + at);
        load_master<N>(p, weights, rests, at);
        float most1 = 0.0f, most2 = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            g[i] *= factor;
            m[i] = tables.first.values[code1.values[i]] * largest1 * all.beta1 + all.fresh1 * g[i];
            v[i] = tables.second.values[code2.values[i]] * largest2 * all.beta2 + all.fresh2 * g[i] * g[i];
            p[i] = (p[i] + step * __fdividef(m[i], sqrtf(v[i]) + all.epsilon)) * keep;
            most1 = fmaxf(most1, fabsf(m[i]));
            most2 = fmaxf(most2, v[i]);
        }
        store_master<N>(p, weights, rests, at);
        most1 = largest_of_warp(most1);
        most2 = largest_of_warp(most2);
        const float inverse1 = inverse(most1), inverse2 = inverse(most2);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            uint32_t code = nearest<6>(tables.first, tables.first_index, m[i] * inverse1);
            // Coding must not turn a small negative moment into none at all.
            if (signbit(m[i]) && tables.first.values[code] == 0.0f) code -= 1;
            code1.values[i] = static_cast<uint8_t>(code);
            code2.values[i] = static_cast<uint8_t>(nearest<7>(tables.second, tables.second_index, v[i] * inverse2));
        }
        *reinterpret_cast<Packed<uint8_t, N>*>(first_codes + at) = code1;
        *reinterpret_cast<Packed<uint8_t, N>*>(second_codes + at) = code2;
        if (lane == 0) {
            first_largest[block] = most1;
            second_largest[block] = most2;
        }
    }
}

template <typename T>
__device__ __forceinline__ void split_master(const float* from, T* copy, void* rest, long long len) {
    const size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= len) return;
    const float p[1] = {from[at]};
    if (rest || sizeof(T) == 4) {
        store_master<1>(p, copy, rest, at);
    } else {
        copy[at] = static_cast<T>(p[0]);
    }
}

template <typename T>
__device__ __forceinline__ void join_master(const T* copy, const void* rest, float* to, long long len) {
    const size_t at = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= len) return;
    float p[1] = {static_cast<float>(copy[at])};
    if (rest) load_master<1>(p, copy, rest, at);
    to[at] = p[0];
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
