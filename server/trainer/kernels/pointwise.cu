// What happens to every element by itself. A thread has one vector of sixteen bytes; the last one may be cut short.

#include "elements.cuh"

constexpr int THREADS = 256;

/// First element of the thread's vector.
template <int N>
__device__ __forceinline__ size_t first_element() {
    return (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * N;
}

template <typename FROM, typename TO>
__device__ __forceinline__ void cast(const FROM* x, TO* y, long long len) {
    begin();
    const size_t at = first_element<4>();
    float values[4];
    load_part<4>(values, x, at, len);
    store_part<4>(y, values, at, len);
}

template <typename T, int N>
__device__ __forceinline__ void add(const T* a, const T* b, T* y, long long len) {
    begin();
    const size_t at = first_element<N>();
    float left[N], right[N];
    load_part<N>(left, a, at, len);
    load_part<N>(right, b, at, len);
#pragma unroll
    for (int i = 0; i < N; ++i) left[i] += right[i];
    store_part<N>(y, left, at, len);
}

/// y += bias[channel] + residual. `channels` is a multiple of N.
template <typename T, int N>
__device__ __forceinline__ void bias_residual(T* y, const T* bias, const T* residual, int channels, long long len) {
    begin();
    const size_t at = first_element<N>();
    if (at >= len) return;
    float values[N], more[N];
    load_vector<N>(values, y + at);
    if (bias) {
        load_vector<N>(more, bias + at % channels);
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] += more[i];
    }
    if (residual) {
        load_vector<N>(more, residual + at);
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] += more[i];
    }
    store_vector<N>(y + at, values);
}

/// Phi(x), the normal distribution.
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f + 0.5f * erff(x * 0.70710678118654752f); }

__device__ __forceinline__ float gelu_slope(float x, float cdf) {
    // The density is exp(-x^2 / 2) / sqrt(2 pi).
    return cdf + x * 0.39894228040143268f * __expf(-0.5f * x * x);
}

__device__ __forceinline__ float silu_slope(float x) {
    const float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

struct Silu {
    static __device__ __forceinline__ float value(float x) { return x * sigmoid(x); }
    static __device__ __forceinline__ float slope(float x) { return silu_slope(x); }
};

struct QuickGelu {
    static __device__ __forceinline__ float value(float x) { return x * sigmoid(1.702f * x); }
    // x s(a x) = silu(a x) / a.
    static __device__ __forceinline__ float slope(float x) { return silu_slope(1.702f * x); }
};

struct Gelu {
    static __device__ __forceinline__ float value(float x) { return x * normal_cdf(x); }
    static __device__ __forceinline__ float slope(float x) { return gelu_slope(x, normal_cdf(x)); }
};

template <typename KIND, typename T, int N>
__device__ __forceinline__ void activate(const T* x, T* y, long long len) {
    begin();
    const size_t at = first_element<N>();
    float values[N];
    load_part<N>(values, x, at, len);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = KIND::value(values[i]);
    store_part<N>(y, values, at, len);
}

template <typename KIND, typename T, int N>
__device__ __forceinline__ void activate_grad(const T* dy, const T* x, const T* plus, T* dx, long long len) {
    begin();
    const size_t at = first_element<N>();
    float values[N], upstream[N], more[N] = {};
    load_part<N>(values, x, at, len);
    load_part<N>(upstream, dy, at, len);
    if (plus) load_part<N>(more, plus, at, len);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = upstream[i] * KIND::slope(values[i]) + more[i];
    store_part<N>(dx, values, at, len);
}

/// y = a gelu(b), x = [a, b] along the channels, of which y has `channels`, a multiple of N.
template <typename T, int N>
__device__ __forceinline__ void geglu(const T* x, T* y, int channels, long long len) {
    begin();
    const size_t at = first_element<N>();
    if (at >= len) return;
    // Of a, whose rows are twice as long as y's.
    const size_t from = at + at / channels * channels;
    float a[N], b[N];
    load_vector<N>(a, x + from);
    load_vector<N>(b, x + from + channels);
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] *= Gelu::value(b[i]);
    store_vector<N>(y + at, a);
}

template <typename T, int N>
__device__ __forceinline__ void geglu_grad(const T* dy, const T* x, T* dx, int channels, long long len) {
    begin();
    const size_t at = first_element<N>();
    if (at >= len) return;
    const size_t from = at + at / channels * channels;
    float a[N], b[N], upstream[N];
    load_vector<N>(a, x + from);
    load_vector<N>(b, x + from + channels);
    load_vector<N>(upstream, dy + at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float cdf = normal_cdf(b[i]), slope = gelu_slope(b[i], cdf);
        const float of_a = upstream[i] * b[i] * cdf;
        b[i] = upstream[i] * a[i] * slope;
        a[i] = of_a;
    }
    store_vector<N>(dx + from, a);
    store_vector<N>(dx + from + channels, b);
}

#define CAST(FROM, FROM_SUFFIX, TO, TO_SUFFIX)                                                                               \
    KERNEL(THREADS) cast_##FROM_SUFFIX##_##TO_SUFFIX(const FROM* x, TO* y, long long len) { cast<FROM, TO>(x, y, len); }
CAST(float, f32, float, f32)
CAST(float, f32, __half, f16)
CAST(__half, f16, float, f32)
IF_BF16(CAST(float, f32, __nv_bfloat16, bf16) CAST(__nv_bfloat16, bf16, float, f32))

#define FLAT(TYPE, SUFFIX, N)                                                                                                \
    KERNEL(THREADS) add_##SUFFIX(const TYPE* a, const TYPE* b, TYPE* y, long long len) { add<TYPE, N>(a, b, y, len); }       \
    ACTIVATION(Silu, silu, TYPE, SUFFIX, N)                                                                                  \
    ACTIVATION(QuickGelu, quick_gelu, TYPE, SUFFIX, N)                                                                       \
    ACTIVATION(Gelu, gelu, TYPE, SUFFIX, N)                                                                                  \
    BY_CHANNEL(TYPE, SUFFIX, N)                                                                                              \
    BY_CHANNEL(TYPE, SUFFIX, 1)
#define ACTIVATION(KIND, NAME, TYPE, SUFFIX, N)                                                                              \
    KERNEL(THREADS) NAME##_##SUFFIX(const TYPE* x, TYPE* y, long long len) { activate<KIND, TYPE, N>(x, y, len); }           \
    KERNEL(THREADS) NAME##_grad_##SUFFIX(const TYPE* dy, const TYPE* x, const TYPE* plus, TYPE* dx, long long len) {         \
        activate_grad<KIND, TYPE, N>(dy, x, plus, dx, len);                                                                  \
    }
#define BY_CHANNEL(TYPE, SUFFIX, N)                                                                                          \
    KERNEL(THREADS)                                                                                                          \
    bias_residual_##N##_##SUFFIX(TYPE* y, const TYPE* bias, const TYPE* residual, int channels, long long len) {             \
        bias_residual<TYPE, N>(y, bias, residual, channels, len);                                                            \
    }                                                                                                                        \
    KERNEL(THREADS) geglu_##N##_##SUFFIX(const TYPE* x, TYPE* y, int channels, long long len) {                              \
        geglu<TYPE, N>(x, y, channels, len);                                                                                 \
    }                                                                                                                        \
    KERNEL(THREADS) geglu_grad_##N##_##SUFFIX(const TYPE* dy, const TYPE* x, TYPE* dx, int channels, long long len) {        \
        geglu_grad<TYPE, N>(dy, x, dx, channels, len);                                                                       \
    }
FLAT(float, f32, 4)
FLAT(__half, f16, 8)
IF_BF16(FLAT(__nv_bfloat16, bf16, 8))
