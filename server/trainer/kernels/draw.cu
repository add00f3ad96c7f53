// What chance gives a step, and the rows that are learned from: `engine/philox.rs` on the GPU. In f32, whatever a network computes in.

#include "elements.cuh"

constexpr int THREADS = 256;

struct Block {
    uint32_t words[4];
};

/// Philox4x32-10. `clock`: seed and micro-batch, low halves first.
__device__ __forceinline__ Block philox(const uint32_t* clock, uint32_t purpose, uint32_t row, uint32_t index) {
    uint32_t a = index, b = row | purpose << 24, c = clock[2], d = clock[3], key0 = clock[0], key1 = clock[1];
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xd2511f53u, a), low0 = 0xd2511f53u * a;
        const uint32_t high1 = __umulhi(0xcd9e8d57u, c), low1 = 0xcd9e8d57u * c;
        a = high1 ^ b ^ key0;
        b = low1;
        c = high0 ^ d ^ key1;
        d = low0;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return {{a, b, c, d}};
}

/// Four standard normal values; both arguments of a pair are exact in f32.
__device__ __forceinline__ void normals(float (&to)[4], const Block& block) {
    constexpr float UNIT = 1.0f / (1 << 24);
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
        const float radius = sqrtf(-2.0f * logf(static_cast<float>((block.words[pair] >> 8) + 1) * UNIT));
        float sin, cos;
        sincospif(2.0f * (static_cast<float>(block.words[pair + 1] >> 8) * UNIT), &sin, &cos);
        to[pair] = radius * cos;
        to[pair + 1] = radius * sin;
    }
}

__device__ __forceinline__ void draw_normals(float* to, const uint32_t* clock, uint32_t purpose, uint32_t row, int index, int count) {
    float values[4];
    normals(values, philox(clock, purpose, row, index));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int at = index * 4 + i;
        if (at < count) to[static_cast<size_t>(row) * count + at] = values[i];
    }
}

/// Grid: blocks of four values of a row, rows. `offsets` may be absent. Purposes are those of `Purpose`.
KERNEL(THREADS)
draw(const uint32_t* clock, float* latents, float* noise, float* offsets, float* timesteps, int count, int channels, int steps, int for_latents,
     int for_noise, int for_offsets, int for_timesteps) {
    begin();
    const int index = blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    if (index * 4 < count) {
        draw_normals(latents, clock, for_latents, row, index, count);
        draw_normals(noise, clock, for_noise, row, index, count);
    }
    if (offsets != nullptr && index * 4 < channels) draw_normals(offsets, clock, for_offsets, row, index, channels);
    if (index == 0) timesteps[row] = static_cast<float>(__umulhi(philox(clock, for_timesteps, row, 0).words[0], steps));
}

/// What `diffuse` reads and writes, as `Op::Diffuse` names it.
template <typename T>
struct Diffusion {
    const float *mean, *deviation, *latents, *noise, *offsets, *timesteps, *schedule, *times, *shares, *strengths;
    T *noisy, *time;
    float *target, *weights;
};

/// Grid: values of a row, rows; a row has `count` values, and `width` of its time.
template <typename T>
__device__ __forceinline__ void diffuse(const Diffusion<T>& of, int count, int channels, int width, int velocity) {
    begin();
    const int at = blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    const int timestep = static_cast<int>(of.timesteps[row]);
    const float signal = of.schedule[timestep * 3], sigma = of.schedule[timestep * 3 + 1];
    if (at < count) {
        const size_t own = static_cast<size_t>(row) * count + at;
        const float clean = (of.mean[own] + of.deviation[own] * of.latents[own]) * of.strengths[0];
        float noise = of.noise[own];
        if (of.offsets != nullptr) noise += of.strengths[1] * of.offsets[row * channels + at % channels];
        of.noisy[own] = static_cast<T>(signal * clean + sigma * noise);
        of.target[own] = velocity ? signal * noise - sigma * clean : noise;
    }
    if (at < width) of.time[static_cast<size_t>(row) * width + at] = static_cast<T>(of.times[static_cast<size_t>(timestep) * width + at]);
    if (at == 0) of.weights[row] = of.shares[row] * of.schedule[timestep * 3 + 2];
}

#define DIFFUSE(TYPE, SUFFIX)                                                                                                \
    KERNEL(THREADS)                                                                                                          \
    diffuse_##SUFFIX(const float* mean, const float* deviation, const float* latents, const float* noise,                    \
                     const float* offsets, const float* timesteps, const float* schedule, const float* times,                \
                     const float* shares, const float* strengths, TYPE* noisy, TYPE* time, float* target, float* weights,    \
                     int count, int channels, int width, int velocity) {                                                     \
        diffuse<TYPE>({mean, deviation, latents, noise, offsets, timesteps, schedule, times, shares, strengths, noisy, time, \
                       target, weights},                                                                                     \
                      count, channels, width, velocity);                                                                     \
    }
DIFFUSE(float, f32)
DIFFUSE(__half, f16)
IF_BF16(DIFFUSE(__nv_bfloat16, bf16))
