// Group norm over channels-last maps `[rows, pixels, channels]`, with what is added before it (`Shift`) and SiLU after it.
//
// A map is cut into bands of pixels. A block has all channels of one band: a thread keeps N neighbouring channels and walks every
// `lanes`-th pixel, so that a warp reads whole lines whatever the size of a group. Sums over a band go to memory and are added up by
// whoever needs them, in the order of the bands: no atomics, the same bits every time. A second reading of a map comes from L2.

#include "vectors.cuh"

constexpr int THREADS = 512;
constexpr int FINISHERS = 1024;

/// Which channels and pixels of its band a thread has.
struct Place {
    int vector, step, lane, lanes;
    bool idle;
};

__device__ __forceinline__ Place place_of(int vectors) {
    if (vectors > THREADS) return {static_cast<int>(threadIdx.x), THREADS, 0, 1, false};
    const int lanes = THREADS / vectors, lane = threadIdx.x / vectors;
    return {static_cast<int>(threadIdx.x) % vectors, vectors, lane, lanes, lane >= lanes};
}

struct Shape {
    int pixels, channels, groups, bands;

    __device__ __forceinline__ int band_pixels() const { return (pixels + bands - 1) / bands; }
    __device__ __forceinline__ int first_pixel(int band) const { return min(band * band_pixels(), pixels); }
    __device__ __forceinline__ int pixels_of(int band) const { return first_pixel(band + 1) - first_pixel(band); }
    __device__ __forceinline__ int size() const { return channels / groups; }
};

template <typename T, int N>
__device__ __forceinline__ void load_shift(float (&shift)[N], const T* rows, const T* channels, int row, int all, int first) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        shift[i] = (rows ? static_cast<float>(rows[static_cast<size_t>(row) * all + first + i]) : 0.0f) +
                   (channels ? static_cast<float>(channels[first + i]) : 0.0f);
    }
}

/// A value of the group, near its mean where the mean is far from zero: squares are taken of differences to it, or they would cancel.
template <typename T>
__device__ __forceinline__ float pivot(const T* x, const T* shift_rows, const T* shift_channels, int row, int group, const Shape& shape) {
    float shift[1];
    const int channel = group * shape.size();
    load_shift<T, 1>(shift, shift_rows, shift_channels, row, shape.channels, channel);
    return static_cast<float>(x[static_cast<size_t>(row) * shape.pixels * shape.channels + channel]) + shift[0];
}

/// Sum, and sum of squares around the band's own mean, of each group: `parts` `[rows, bands, groups, 2]`. Grid: bands, rows.
template <typename T, int N>
__device__ __forceinline__ void group_norm_sums(const T* x, const T* shift_rows, const T* shift_channels, float* parts, Shape shape) {
    // `[lanes, channels, 2]`
    extern __shared__ float sums[];
    const int band = blockIdx.x, row = blockIdx.y, first = shape.first_pixel(band), count = shape.pixels_of(band);
    const Place place = place_of(shape.channels / N);
    const T* from = x + (static_cast<size_t>(row) * shape.pixels + first) * shape.channels;
    if (!place.idle) {
        for (int vector = place.vector; vector < shape.channels / N; vector += place.step) {
            float shift[N], sum[N] = {}, squares[N] = {};
            load_shift<T, N>(shift, shift_rows, shift_channels, row, shape.channels, vector * N);
#pragma unroll
            for (int i = 0; i < N; ++i) shift[i] -= pivot(x, shift_rows, shift_channels, row, (vector * N + i) / shape.size(), shape);
#pragma unroll 4
            for (int pixel = place.lane; pixel < count; pixel += place.lanes) {
                float values[N];
                load_vector<N>(values, from + static_cast<size_t>(pixel) * shape.channels + vector * N);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const float s = values[i] + shift[i];
                    sum[i] += s;
                    squares[i] += s * s;
                }
            }
#pragma unroll
            for (int i = 0; i < N; ++i) {
                sums[(place.lane * shape.channels + vector * N + i) * 2] = sum[i];
                sums[(place.lane * shape.channels + vector * N + i) * 2 + 1] = squares[i];
            }
        }
    }
    __syncthreads();
    const int size = shape.size();
    for (int group = threadIdx.x / 32; group < shape.groups; group += THREADS / 32) {
        float sum = 0.0f, squares = 0.0f;
        for (int i = threadIdx.x % 32; i < size * place.lanes; i += 32) {
            const int at = (i / size * shape.channels + group * size + i % size) * 2;
            sum += sums[at];
            squares += sums[at + 1];
        }
        sum = sum_of_warp(sum);
        squares = sum_of_warp(squares);
        if (threadIdx.x % 32 == 0) {
            float* to = parts + ((static_cast<size_t>(row) * shape.bands + band) * shape.groups + group) * 2;
            const float members = static_cast<float>(count * size);
            to[0] = sum + members * pivot(x, shift_rows, shift_channels, row, group, shape);
            to[1] = fmaxf(squares - sum * (sum / fmaxf(members, 1.0f)), 0.0f);
        }
    }
}

/// Mean and rstd from the bands' sums (Chan et al. 1979), then the map. Grid: bands, rows; the first band writes `stats`.
template <typename T, int N>
__device__ __forceinline__ void group_norm_apply(const T* x, const T* shift_rows, const T* shift_channels, const T* w, const T* b,
                                                 const float* parts, T* y, float* stats, float eps, int silu, Shape shape) {
    // `[groups, 2]`
    extern __shared__ float means[];
    const int band = blockIdx.x, row = blockIdx.y, first = shape.first_pixel(band), count = shape.pixels_of(band), size = shape.size();
    for (int group = threadIdx.x / 32; group < shape.groups; group += THREADS / 32) {
        const float* from = parts + (static_cast<size_t>(row) * shape.bands * shape.groups + group) * 2;
        const float members = static_cast<float>(shape.pixels) * size;
        float sum = 0.0f, squares = 0.0f;
        for (int i = threadIdx.x % 32; i < shape.bands; i += 32) sum += from[static_cast<size_t>(i) * shape.groups * 2];
        const float mean = sum_of_warp(sum) / members;
        for (int i = threadIdx.x % 32; i < shape.bands; i += 32) {
            const float own = static_cast<float>(shape.pixels_of(i) * size);
            if (own == 0.0f) continue;
            const float away = from[static_cast<size_t>(i) * shape.groups * 2] / own - mean;
            squares += from[static_cast<size_t>(i) * shape.groups * 2 + 1] + own * away * away;
        }
        const float rstd = rsqrtf(sum_of_warp(squares) / members + eps);
        if (threadIdx.x % 32 == 0) {
            means[group * 2] = mean;
            means[group * 2 + 1] = rstd;
            if (band == 0) {
                stats[(row * shape.groups + group) * 2] = mean;
                stats[(row * shape.groups + group) * 2 + 1] = rstd;
            }
        }
    }
    __syncthreads();
    const Place place = place_of(shape.channels / N);
    if (place.idle) return;
    const size_t start = (static_cast<size_t>(row) * shape.pixels + first) * shape.channels;
    for (int vector = place.vector; vector < shape.channels / N; vector += place.step) {
        // y = x * scale + offset
        float scale[N], offset[N];
        load_shift<T, N>(offset, shift_rows, shift_channels, row, shape.channels, vector * N);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int channel = vector * N + i, group = channel / size;
            scale[i] = means[group * 2 + 1] * static_cast<float>(w[channel]);
            offset[i] = (offset[i] - means[group * 2]) * scale[i] + static_cast<float>(b[channel]);
        }
#pragma unroll 4
        for (int pixel = place.lane; pixel < count; pixel += place.lanes) {
            const size_t at = start + static_cast<size_t>(pixel) * shape.channels + vector * N;
            float values[N];
            load_vector<N>(values, x + at);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const float z = values[i] * scale[i] + offset[i];
                values[i] = silu ? z * sigmoid(z) : z;
            }
            store_vector<N>(y + at, values);
        }
    }
}

/// What a thread needs of its channels to go from `x` and `dy` to `n` and `dz`.
template <int N>
struct Channels {
    float shift[N], mean[N], rstd[N], w[N], b[N];

    template <typename T>
    __device__ __forceinline__ void load(const T* shift_rows, const T* shift_channels, const T* all_w, const T* all_b, const float* stats, int row,
                                         int first, const Shape& shape) {
        load_shift<T, N>(shift, shift_rows, shift_channels, row, shape.channels, first);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int group = row * shape.groups + (first + i) / shape.size();
            mean[i] = stats[group * 2];
            rstd[i] = stats[group * 2 + 1];
            w[i] = static_cast<float>(all_w[first + i]);
            b[i] = static_cast<float>(all_b[first + i]);
        }
    }

    __device__ __forceinline__ float normal(int i, float x) const { return (x + shift[i] - mean[i]) * rstd[i]; }

    __device__ __forceinline__ float before_silu(int i, float n, float dy, int silu) const {
        if (!silu) return dy;
        const float z = n * w[i] + b[i], s = sigmoid(z);
        return dy * s * (1.0f + z * (1.0f - s));
    }
};

/// Of each channel and band the sums of dz, dz n and n: `parts` `[rows, bands, 3, channels]`. Grid: bands, rows.
template <typename T, int N>
__device__ __forceinline__ void group_norm_grad_sums(const T* dy, const T* x, const T* shift_rows, const T* shift_channels, const T* w, const T* b,
                                                     const float* stats, float* parts, int silu, Shape shape) {
    // `[lanes, 3, channels]`
    extern __shared__ float sums[];
    const int band = blockIdx.x, row = blockIdx.y, first = shape.first_pixel(band), count = shape.pixels_of(band);
    const Place place = place_of(shape.channels / N);
    const size_t start = (static_cast<size_t>(row) * shape.pixels + first) * shape.channels;
    if (!place.idle) {
        for (int vector = place.vector; vector < shape.channels / N; vector += place.step) {
            Channels<N> own;
            own.load(shift_rows, shift_channels, w, b, stats, row, vector * N, shape);
            float dz_sum[N] = {}, dzn_sum[N] = {}, n_sum[N] = {};
#pragma unroll 2
            for (int pixel = place.lane; pixel < count; pixel += place.lanes) {
                const size_t at = start + static_cast<size_t>(pixel) * shape.channels + vector * N;
                float values[N], upstream[N];
                load_vector<N>(values, x + at);
                load_vector<N>(upstream, dy + at);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const float n = own.normal(i, values[i]), dz = own.before_silu(i, n, upstream[i], silu);
                    dz_sum[i] += dz;
                    dzn_sum[i] += dz * n;
                    n_sum[i] += n;
                }
            }
            float* to = sums + place.lane * 3 * shape.channels + vector * N;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                to[i] = dz_sum[i];
                to[shape.channels + i] = dzn_sum[i];
                to[2 * shape.channels + i] = n_sum[i];
            }
        }
    }
    __syncthreads();
    float* to = parts + (static_cast<size_t>(row) * shape.bands + band) * 3 * shape.channels;
    for (int i = threadIdx.x; i < 3 * shape.channels; i += THREADS) {
        float sum = 0.0f;
        for (int lane = 0; lane < place.lanes; ++lane) sum += sums[lane * 3 * shape.channels + i];
        to[i] = sum;
    }
}

/// Everything that sums give: of each row and group the sums of w dz and w dz n (`group_sums` `[rows, groups, 2]`), gradients of w, b
/// and of what was added. Sums of ds over the pixels follow from those of dz and n. Grid: groups; 1024 threads.
template <typename T>
__device__ __forceinline__ void group_norm_grad_finish(const T* w, const float* stats, const float* parts, float* group_sums, T* dw, T* db,
                                                       T* dshift_rows, T* dshift_channels, int rows, int add, Shape shape) {
    // `[rows, 3, size]`: sums of dz, dz n and n; then `[rows, 2]`: the group's totals.
    extern __shared__ float sums[];
    const int group = blockIdx.x, size = shape.size(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* totals = sums + rows * 3 * size;
    // Four threads share a sum's bands. All threads go round equally often, as they shuffle.
    for (int start = 0; start < rows * 3 * size; start += FINISHERS / 4) {
        const int i = start + threadIdx.x / 4, row = i / (3 * size), kind = i / size % 3, channel = group * size + i % size;
        float sum = 0.0f;
        if (i < rows * 3 * size) {
            const float* from = parts + (static_cast<size_t>(row) * shape.bands * 3 + kind) * shape.channels + channel;
#pragma unroll 8
            for (int band = threadIdx.x % 4; band < shape.bands; band += 4) sum += from[static_cast<size_t>(band) * 3 * shape.channels];
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (i < rows * 3 * size && threadIdx.x % 4 == 0) sums[i] = sum;
    }
    __syncthreads();
    for (int row = warp; row < rows; row += FINISHERS / 32) {
        const float* own = sums + row * 3 * size;
        float a = 0.0f, b = 0.0f;
        for (int i = lane; i < size; i += 32) {
            a += static_cast<float>(w[group * size + i]) * own[i];
            b += static_cast<float>(w[group * size + i]) * own[size + i];
        }
        a = sum_of_warp(a);
        b = sum_of_warp(b);
        if (lane == 0) {
            totals[row * 2] = group_sums[(row * shape.groups + group) * 2] = a;
            totals[row * 2 + 1] = group_sums[(row * shape.groups + group) * 2 + 1] = b;
        }
    }
    __syncthreads();
    const float members = static_cast<float>(shape.pixels) * size;
    for (int i = threadIdx.x; i < size; i += FINISHERS) {
        const int channel = group * size + i;
        float dw_sum = 0.0f, db_sum = 0.0f, dshift_sum = 0.0f;
        for (int row = 0; row < rows; ++row) {
            const float* own = sums + row * 3 * size;
            const float rstd = stats[(row * shape.groups + group) * 2 + 1];
            const float ds = rstd * (static_cast<float>(w[channel]) * own[i] -
                                     (totals[row * 2] * static_cast<float>(shape.pixels) + totals[row * 2 + 1] * own[2 * size + i]) / members);
            if (dshift_rows) dshift_rows[static_cast<size_t>(row) * shape.channels + channel] = static_cast<T>(ds);
            dw_sum += own[size + i];
            db_sum += own[i];
            dshift_sum += ds;
        }
        put_gradient(dw, channel, dw_sum, add);
        put_gradient(db, channel, db_sum, add);
        put_gradient(dshift_channels, channel, dshift_sum, add);
    }
}

/// dx = rstd (w dz - (sum w dz + n sum w dz n) / m) + plus. Grid: bands, rows. `dx` may be `plus`.
template <typename T, int N>
__device__ __forceinline__ void group_norm_grad_apply(const T* dy, const T* x, const T* shift_rows, const T* shift_channels, const T* w, const T* b,
                                                      const float* stats, const float* group_sums, const T* plus, T* dx, int silu, Shape shape) {
    const int band = blockIdx.x, row = blockIdx.y, first = shape.first_pixel(band), count = shape.pixels_of(band);
    const Place place = place_of(shape.channels / N);
    if (place.idle) return;
    const size_t start = (static_cast<size_t>(row) * shape.pixels + first) * shape.channels;
    const float members = static_cast<float>(shape.pixels) * shape.size();
    for (int vector = place.vector; vector < shape.channels / N; vector += place.step) {
        Channels<N> own;
        own.load(shift_rows, shift_channels, w, b, stats, row, vector * N, shape);
        float a[N], c[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int group = row * shape.groups + (vector * N + i) / shape.size();
            a[i] = group_sums[group * 2] / members;
            c[i] = group_sums[group * 2 + 1] / members;
        }
#pragma unroll 2
        for (int pixel = place.lane; pixel < count; pixel += place.lanes) {
            const size_t at = start + static_cast<size_t>(pixel) * shape.channels + vector * N;
            float values[N], upstream[N], more[N] = {};
            load_vector<N>(values, x + at);
            load_vector<N>(upstream, dy + at);
            if (plus) load_vector<N>(more, plus + at);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const float n = own.normal(i, values[i]), dz = own.before_silu(i, n, upstream[i], silu);
                values[i] = own.rstd[i] * (own.w[i] * dz - a[i] - n * c[i]) + more[i];
            }
            store_vector<N>(dx + at, values);
        }
    }
}

#define GROUP_NORM(TYPE, SUFFIX, N)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) group_norm_sums_##N##_##SUFFIX(                                                  \
        const TYPE* x, const TYPE* shift_rows, const TYPE* shift_channels, float* parts, int pixels, int channels, int groups, int bands) { \
        begin();                                                                                                                            \
        group_norm_sums<TYPE, N>(x, shift_rows, shift_channels, parts, {pixels, channels, groups, bands});                                 \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) group_norm_apply_##N##_##SUFFIX(                                                 \
        const TYPE* x, const TYPE* shift_rows, const TYPE* shift_channels, const TYPE* w, const TYPE* b, const float* parts, TYPE* y,      \
        float* stats, float eps, int silu, int pixels, int channels, int groups, int bands) {                                              \
        begin();                                                                                                                           \
        group_norm_apply<TYPE, N>(x, shift_rows, shift_channels, w, b, parts, y, stats, eps, silu, {pixels, channels, groups, bands});     \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) group_norm_grad_sums_##N##_##SUFFIX(                                             \
        const TYPE* dy, const TYPE* x, const TYPE* shift_rows, const TYPE* shift_channels, const TYPE* w, const TYPE* b,                   \
        const float* stats, float* parts, int silu, int pixels, int channels, int groups, int bands) {                                     \
        begin();                                                                                                                           \
        group_norm_grad_sums<TYPE, N>(dy, x, shift_rows, shift_channels, w, b, stats, parts, silu, {pixels, channels, groups, bands});     \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) group_norm_grad_apply_##N##_##SUFFIX(                                            \
        const TYPE* dy, const TYPE* x, const TYPE* shift_rows, const TYPE* shift_channels, const TYPE* w, const TYPE* b,                   \
        const float* stats, const float* group_sums, const TYPE* plus, TYPE* dx, int silu, int pixels, int channels, int groups,           \
        int bands) {                                                                                                                       \
        begin();                                                                                                                           \
        group_norm_grad_apply<TYPE, N>(dy, x, shift_rows, shift_channels, w, b, stats, group_sums, plus, dx, silu,                         \
                                       {pixels, channels, groups, bands});                                                                 \
    }
#define GROUP_NORM_ALL(TYPE, SUFFIX, N)                                                                                                    \
    GROUP_NORM(TYPE, SUFFIX, N)                                                                                                            \
    GROUP_NORM(TYPE, SUFFIX, 1)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(FINISHERS) group_norm_grad_finish_##SUFFIX(                                                     \
        const TYPE* w, const float* stats, const float* parts, float* group_sums, TYPE* dw, TYPE* db, TYPE* dshift_rows,                   \
        TYPE* dshift_channels, int rows, int add, int pixels, int channels, int groups, int bands) {                                       \
        begin();                                                                                                                           \
        group_norm_grad_finish<TYPE>(w, stats, parts, group_sums, dw, db, dshift_rows, dshift_channels, rows, add,                         \
                                     {pixels, channels, groups, bands});                                                                   \
    }

GROUP_NORM_ALL(float, f32, 4)
GROUP_NORM_ALL(__half, f16, 8)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
GROUP_NORM_ALL(__nv_bfloat16, bf16, 8)
#endif
