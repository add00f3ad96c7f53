// The update of one trained weight by itself, as soon as its gradient is there: clipped by its own norm, the weight bf16 and
// nothing else, rounded up or down by chance as `engine/optim/rounding.rs` does it. `engine/cuda/calls/low_memory.rs` calls it.

#include "optimizer.cuh"

__device__ __forceinline__ uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

__device__ __forceinline__ uint32_t key_of_tensor(const Numbers* numbers, int tensor) {
    const uint32_t key = static_cast<uint32_t>(numbers->key_high) << 16 | static_cast<uint32_t>(numbers->key_low);
    return mix(key ^ mix(static_cast<uint32_t>(tensor)));
}

/// What becomes of element `at`: a bf16, as an f32.
__device__ __forceinline__ float by_chance(float value, uint32_t key, uint32_t at) {
    const uint32_t chance = mix(mix(at) ^ key) >> 16;
    return __uint_as_float((__float_as_uint(value) + chance) & 0xffff0000u);
}

/// A tensor's sums of squares by block.
template <typename T, int N>
__device__ __forceinline__ void own_squares(const T* gradient, float* sums, long long len) {
    begin();
    float sum = 0.0f;
    for (size_t at = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * N; at < len; at += static_cast<size_t>(gridDim.x) * THREADS * N) {
        float values[N];
        load_part<N>(values, gradient, at, len);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += values[i] * values[i];
    }
    sum = sum_of_threads(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// The update of a tensor with moments in 8 bits, given `count` sums of squares; their sum goes to `squares`.
template <typename T>
__device__ __forceinline__ void own_8bit(T* weights, const T* gradient, uint8_t* first_codes, float* first_largest, uint8_t* second_codes,
                                         float* second_largest, const Tables* all_tables, const Numbers* numbers, const float* sums,
                                         float* squares, int count, int group, int tensor, long long len) {
    begin();
    constexpr int N = BLOCK / 32;
    __shared__ Tables tables;
    if (numbers->groups[group].present == 0.0f) return;
    const double sum = sum_of_all(sums, count);
    if (blockIdx.x == 0 && threadIdx.x == 0) *squares = static_cast<float>(sum);
    if (!isfinite(sum)) return;
    copy_tables(tables, all_tables);
    const Numbers all = *numbers;
    const float factor = static_cast<float>(factor_of(sum, numbers));
    const uint32_t key = key_of_tensor(numbers, tensor);
    const Coded moments = {first_codes, second_codes, first_largest, second_largest};
    const int lane = threadIdx.x % 32, stride = gridDim.x * (THREADS / 32), blocks = static_cast<int>((len + BLOCK - 1) / BLOCK);
    for (int block = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; block < blocks; block += stride) {
        const size_t at = static_cast<size_t>(block) * BLOCK + lane * N;
        const auto load = [&](float (&p)[N], float (&g)[N]) {
            // What is past the end of a weight is zero, and there; what is past the end of its gradient is another's.
            load_part<N>(g, gradient, at, len);
            load_vector<N>(p, weights + at);
        };
        const auto store = [&](float (&p)[N]) {
#pragma unroll
            for (int i = 0; i < N; ++i) p[i] = by_chance(p[i], key, static_cast<uint32_t>(at + i));
            store_vector<N>(weights + at, p);
        };
        update_block(tables, moments, block, at, factor, all, numbers, group, load, store);
    }
}

/// The whole update of a tensor with moments in f32. One block of threads.
template <typename T>
__device__ __forceinline__ void own_small(T* weights, const T* gradient, float* first, float* second, const Numbers* numbers, float* squares,
                                          int group, int tensor, long long len) {
    begin();
    __shared__ float whole;
    const auto rates = numbers->groups[group];
    if (rates.present == 0.0f) return;
    float sum = 0.0f;
    for (int at = threadIdx.x; at < len; at += THREADS) {
        const float g = static_cast<float>(gradient[at]);
        sum += g * g;
    }
    sum = sum_of_threads(sum);
    if (threadIdx.x == 0) whole = *squares = sum;
    __syncthreads();
    if (!isfinite(whole)) return;
    const Numbers all = *numbers;
    const float factor = static_cast<float>(factor_of(whole, numbers));
    const uint32_t key = key_of_tensor(numbers, tensor);
    for (int at = threadIdx.x; at < len; at += THREADS) {
        const float g = static_cast<float>(gradient[at]) * factor;
        const float m = first[at] * all.beta1 + all.fresh1 * g, v = second[at] * all.beta2 + all.fresh2 * g * g;
        const float p = (static_cast<float>(weights[at]) + rates.step * (m / (sqrtf(v) + all.epsilon))) * rates.keep;
        weights[at] = static_cast<T>(by_chance(p, key, static_cast<uint32_t>(at)));
        first[at] = m;
        second[at] = v;
    }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
KERNEL(THREADS) own_squares_bf16(const __nv_bfloat16* gradient, float* sums, long long len) {
    own_squares<__nv_bfloat16, 8>(gradient, sums, len);
}

KERNEL(THREADS)
own_8bit_bf16(__nv_bfloat16* weights, const __nv_bfloat16* gradient, uint8_t* first_codes, float* first_largest, uint8_t* second_codes,
              float* second_largest, const Tables* tables, const Numbers* numbers, const float* sums, float* squares, int count, int group,
              int tensor, long long len) {
    own_8bit(weights, gradient, first_codes, first_largest, second_codes, second_largest, tables, numbers, sums, squares, count, group,
             tensor, len);
}

KERNEL(THREADS)
own_small_bf16(__nv_bfloat16* weights, const __nv_bfloat16* gradient, float* first, float* second, const Numbers* numbers, float* squares,
               int group, int tensor, long long len) {
    own_small(weights, gradient, first, second, numbers, squares, group, tensor, len);
}
#endif
