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
    begin();
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

/// Code of 0 among first moments.
constexpr uint32_t NOTHING = 127;

/// The first entry that a value with these leading bits can be nearest to. BITS: of the fraction that the index goes by.
template <int BITS>
__device__ __forceinline__ uint32_t lowest(const uint8_t* index, float magnitude) {
    constexpr uint32_t FIRST = (127 - OCTAVES) << BITS;
    return index[max(__float_as_uint(magnitude) >> (23 - BITS), FIRST) - FIRST];
}

/// Code of a first moment that is `value` of the largest.
__device__ __forceinline__ uint32_t first_code(const Tables& tables, float value) {
    const bool negative = __float_as_uint(value) >> 31;
    const uint32_t base = lowest<6>(tables.first_index + (negative ? CELLS / 2 : 0), fabsf(value));
    const uint32_t code = base + (tables.first.boundaries[base] < value ? 1 : 0);
    // Coding must not turn a small negative moment into none at all.
    return negative ? min(code, NOTHING - 1) : code;
}

__device__ __forceinline__ uint32_t second_code(const Tables& tables, float value) {
    const uint32_t base = lowest<7>(tables.second_index, value);
    return base + (tables.second.boundaries[base] < value ? 1 : 0);
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

/// 1 / largest. Below the normal numbers everything counts as nothing.
__device__ __forceinline__ float inverse(float largest) { return largest >= 1.17549435e-38f ? 1.0f / largest : 0.0f; }

/// value / largest, rounded as a division is.
__device__ __forceinline__ float quotient(float value, float largest, float inverse) {
    const float near = value * inverse;
    return fmaf(fmaf(-near, largest, value), inverse, near);
}

/// m / (sqrt(v) + epsilon) to a few units in the last place.
__device__ __forceinline__ float direction(float m, float v, float epsilon) {
    float root, y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(v));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(root + epsilon));
    return m * y;
}

/// Eight codes.
struct alignas(8) Codes {
    uint32_t words[2];

    __device__ __forceinline__ uint32_t at(int i) const { return words[i / 4] >> i % 4 * 8 & 0xff; }
    /// Where there is none yet.
    __device__ __forceinline__ void put(int i, uint32_t code) { words[i / 4] += code << i % 4 * 8; }
};

/// Moments in 8 bits. A warp has a block of 256 elements, a lane eight neighbouring ones.
template <typename T>
__device__ __forceinline__ void adamw_8bit(T* weights, void* rests, const T* gradients, uint8_t* first_codes, float* first_largest,
                                           uint8_t* second_codes, float* second_largest, const uint8_t* groups, const Tables* all_tables,
                                           const Numbers* numbers, const Result* result, int blocks) {
    begin();
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
        const size_t at = static_cast<size_t>(block) * BLOCK + lane * N;
        float p[N], g[N], m[N], v[N];
        Codes code1 = *reinterpret_cast<const Codes*>(first_codes + at), code2 = *reinterpret_cast<const Codes*>(second_codes + at);
        const float largest1 = first_largest[block], largest2 = second_largest[block];
        load_vector<N>(g, gradients + at);
        load_master(p, weights, rests, at);
        const float keep = numbers->groups[group].keep, step = numbers->groups[group].step;
        // Last, so that the loads above do not wait for it.
        if (numbers->groups[group].present == 0.0f) continue;
        const float kept1 = largest1 * all.beta1, kept2 = largest2 * all.beta2;
        float most1 = 0.0f, most2 = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            g[i] *= factor;
            m[i] = tables.first.values[code1.at(i)] * kept1 + all.fresh1 * g[i];
            v[i] = tables.second.values[code2.at(i)] * kept2 + all.fresh2 * g[i] * g[i];
            p[i] = (p[i] + step * direction(m[i], v[i], all.epsilon)) * keep;
            most1 = fmaxf(most1, fabsf(m[i]));
            most2 = fmaxf(most2, v[i]);
        }
        store_master(p, weights, rests, at);
        most1 = largest_of_warp(most1);
        most2 = largest_of_warp(most2);
        const float inverse1 = inverse(most1), inverse2 = inverse(most2);
        code1 = code2 = {};
#pragma unroll
        for (int i = 0; i < N; ++i) {
            code1.put(i, first_code(tables, quotient(m[i], most1, inverse1)));
            code2.put(i, second_code(tables, quotient(v[i], most2, inverse2)));
        }
        *reinterpret_cast<Codes*>(first_codes + at) = code1;
        *reinterpret_cast<Codes*>(second_codes + at) = code2;
        if (lane == 0) {
            first_largest[block] = most1;
            second_largest[block] = most2;
        }
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
