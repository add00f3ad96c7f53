// Nearest-neighbour upsampling and concatenation along the channels. A thread has one vector of the result; channels are multiples
// of N.

#include "elements.cuh"

constexpr int THREADS = 256;

/// A vector of a map `[rows, height, width, channels]`.
struct Place {
    uint32_t vector, x, y, row;
};

__device__ __forceinline__ Place place_of(uint32_t index, uint32_t vectors, uint32_t width, uint32_t height) {
    const uint32_t pixel = index / vectors, line = pixel / width;
    return {index % vectors, pixel % width, line % height, line / height};
}

__device__ __forceinline__ size_t element_at(uint32_t row, uint32_t y, uint32_t x, int height, int width, int channels) {
    return ((static_cast<size_t>(row) * height + y) * width + x) * channels;
}

template <typename T, int N>
__device__ __forceinline__ void upsample(const T* x, T* y, int from_height, int from_width, int to_height, int to_width, int channels,
                                         long long vectors) {
    begin();
    const uint32_t index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= vectors) return;
    const Place to = place_of(index, channels / N, to_width, to_height);
    const uint32_t source_y = to.y * from_height / to_height, source_x = to.x * from_width / to_width;
    const size_t from = element_at(to.row, source_y, source_x, from_height, from_width, channels) + to.vector * N;
    *reinterpret_cast<Packed<T, N>*>(y + static_cast<size_t>(index) * N) = *reinterpret_cast<const Packed<T, N>*>(x + from);
}

/// First of the pixels, of `to` in a line, whose source is pixel `i` of `from` or a later one.
__device__ __forceinline__ uint32_t first_of(uint32_t i, uint32_t from, uint32_t to) { return (i * to + from - 1) / from; }

template <typename T, int N>
__device__ __forceinline__ void upsample_grad(const T* dy, const T* plus, T* dx, int from_height, int from_width, int to_height, int to_width,
                                              int channels, long long vectors) {
    begin();
    const uint32_t index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= vectors) return;
    const Place to = place_of(index, channels / N, from_width, from_height);
    float sums[N] = {}, values[N];
    const uint32_t end_y = first_of(to.y + 1, from_height, to_height), end_x = first_of(to.x + 1, from_width, to_width);
    for (uint32_t y = first_of(to.y, from_height, to_height); y < end_y; ++y) {
        for (uint32_t x = first_of(to.x, from_width, to_width); x < end_x; ++x) {
            load_vector<N>(values, dy + element_at(to.row, y, x, to_height, to_width, channels) + to.vector * N);
#pragma unroll
            for (int i = 0; i < N; ++i) sums[i] += values[i];
        }
    }
    const size_t at = static_cast<size_t>(index) * N;
    if (plus) {
        load_vector<N>(values, plus + at);
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] += values[i];
    }
    store_vector<N>(dx + at, sums);
}

/// Where a vector of the concatenation comes from.
template <typename T, int N>
__device__ __forceinline__ T* part_at(T* a, T* b, uint32_t index, int channels_a, int channels_b) {
    const uint32_t vectors_a = channels_a / N, vectors = vectors_a + channels_b / N;
    const uint32_t pixel = index / vectors, vector = index % vectors;
    if (vector < vectors_a) return a ? a + static_cast<size_t>(pixel) * channels_a + vector * N : nullptr;
    return b ? b + static_cast<size_t>(pixel) * channels_b + (vector - vectors_a) * N : nullptr;
}

template <typename T, int N>
__device__ __forceinline__ void concat(const T* a, const T* b, T* y, int channels_a, int channels_b, long long vectors) {
    begin();
    const uint32_t index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= vectors) return;
    const T* from = part_at<const T, N>(a, b, index, channels_a, channels_b);
    *reinterpret_cast<Packed<T, N>*>(y + static_cast<size_t>(index) * N) = *reinterpret_cast<const Packed<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void concat_grad(const T* dy, T* da, T* db, int channels_a, int channels_b, long long vectors) {
    begin();
    const uint32_t index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= vectors) return;
    T* to = part_at<T, N>(da, db, index, channels_a, channels_b);
    if (to) *reinterpret_cast<Packed<T, N>*>(to) = *reinterpret_cast<const Packed<T, N>*>(dy + static_cast<size_t>(index) * N);
}

#define REARRANGE(TYPE, SUFFIX, N)                                                                                           \
    KERNEL(THREADS)                                                                                                          \
    upsample_##N##_##SUFFIX(const TYPE* x, TYPE* y, int from_height, int from_width, int to_height, int to_width,            \
                            int channels, long long vectors) {                                                               \
        upsample<TYPE, N>(x, y, from_height, from_width, to_height, to_width, channels, vectors);                            \
    }                                                                                                                        \
    KERNEL(THREADS)                                                                                                          \
    upsample_grad_##N##_##SUFFIX(const TYPE* dy, const TYPE* plus, TYPE* dx, int from_height, int from_width, int to_height, \
                                 int to_width, int channels, long long vectors) {                                            \
        upsample_grad<TYPE, N>(dy, plus, dx, from_height, from_width, to_height, to_width, channels, vectors);               \
    }                                                                                                                        \
    KERNEL(THREADS)                                                                                                          \
    concat_##N##_##SUFFIX(const TYPE* a, const TYPE* b, TYPE* y, int channels_a, int channels_b, long long vectors) {        \
        concat<TYPE, N>(a, b, y, channels_a, channels_b, vectors);                                                           \
    }                                                                                                                        \
    KERNEL(THREADS)                                                                                                          \
    concat_grad_##N##_##SUFFIX(const TYPE* dy, TYPE* da, TYPE* db, int channels_a, int channels_b, long long vectors) {      \
        concat_grad<TYPE, N>(dy, da, db, channels_a, channels_b, vectors);                                                   \
    }
#define REARRANGE_ALL(TYPE, SUFFIX, N) REARRANGE(TYPE, SUFFIX, N) REARRANGE(TYPE, SUFFIX, 1)
REARRANGE_ALL(float, f32, 4)
REARRANGE_ALL(__half, f16, 8)
IF_BF16(REARRANGE_ALL(__nv_bfloat16, bf16, 8))
