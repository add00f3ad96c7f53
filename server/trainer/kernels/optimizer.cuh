// What the updates of trained weights share: their numbers, sums of squares, and moments in blocks of 256 codes of 8 bits.
// `engine/optim` has the formulas and `engine/cuda/calls/optimizer.rs` the layout of what is read here.

#pragma once

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
    /// Halves of the key of what is rounded by chance.
    float key_high, key_low;
};

/// What an update reports.
struct Result {
    float norm, factor, finite;
};

/// Of all threads of a block; the first one has it.
__device__ __forceinline__ float sum_of_threads(float sum) {
    __shared__ float warps[THREADS / 32];
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS / 32; ++i) sum += warps[i];
    }
    return sum;
}

/// Of `count` numbers; every thread of the block has it.
__device__ __forceinline__ double sum_of_all(const float* sums, int count) {
    __shared__ double lanes[THREADS];
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += sums[i];
    lanes[threadIdx.x] = sum;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) lanes[threadIdx.x] += lanes[threadIdx.x + step];
        __syncthreads();
    }
    return lanes[0];
}

/// What gradients of this sum of squares are multiplied by.
__device__ __forceinline__ double factor_of(double squares, const Numbers* numbers) {
    const double scale = numbers->loss_scale, most = numbers->max_norm, norm = sqrt(squares) / scale;
    const double kept = most > 0.0 ? fmin(most / (norm + 1e-6), 1.0) : 1.0;
    return kept / scale;
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

/// Moments in 8 bits of a block of 256 elements, of which a lane of a warp has eight neighbouring ones: where they are.
struct Coded {
    uint8_t *first_codes, *second_codes;
    float *first_largest, *second_largest;
};

/// Copies the tables; all threads of the block take part.
__device__ __forceinline__ void copy_tables(Tables& tables, const Tables* from) {
    static_assert(sizeof(Tables) % 4 == 0, "copied in words");
    for (int i = threadIdx.x; i < sizeof(Tables) / 4; i += THREADS) {
        reinterpret_cast<uint32_t*>(&tables)[i] = reinterpret_cast<const uint32_t*>(from)[i];
    }
    __syncthreads();
}

/// The update of a block, a warp's work: `load(p, g)` gives exact weights and gradients, `store(p)` takes the weights back.
template <typename Load, typename Store>
__device__ __forceinline__ void update_block(const Tables& tables, const Coded& at, int block, size_t start, float factor, const Numbers& all,
                                             const Numbers* numbers, int group, const Load& load, const Store& store) {
    constexpr int N = BLOCK / 32;
    float p[N], g[N], m[N], v[N];
    Codes code1 = *reinterpret_cast<const Codes*>(at.first_codes + start), code2 = *reinterpret_cast<const Codes*>(at.second_codes + start);
    const float largest1 = at.first_largest[block], largest2 = at.second_largest[block];
    load(p, g);
    const float keep = numbers->groups[group].keep, step = numbers->groups[group].step;
    // Last, so that the loads above do not wait for it.
    if (numbers->groups[group].present == 0.0f) return;
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
    store(p);
    most1 = largest_of_warp(most1);
    most2 = largest_of_warp(most2);
    const float inverse1 = inverse(most1), inverse2 = inverse(most2);
    code1 = code2 = {};
#pragma unroll
    for (int i = 0; i < N; ++i) {
        code1.put(i, first_code(tables, quotient(m[i], most1, inverse1)));
        code2.put(i, second_code(tables, quotient(v[i], most2, inverse2)));
    }
    *reinterpret_cast<Codes*>(at.first_codes + start) = code1;
    *reinterpret_cast<Codes*>(at.second_codes + start) = code2;
    if (threadIdx.x % 32 == 0) {
        at.first_largest[block] = most1;
        at.second_largest[block] = most2;
    }
}
