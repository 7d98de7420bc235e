// What stands between the fp8 products of an MLP in a long run, in one pass each; and the final norm.
//
//   round_rows   normed [T, D] bf16                 -> / step, fp8
//   inner_rows   gate and up [T, 2, inner] bf16     -> silu(gate) * up / step, fp8
//   norm_rows    residual [T, D] bf16               -> normed, bf16
//
// For GPUs of compute capability 8.9 and newer. No headers: NVRTC comes without CUDA's.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xffff0000u); }

__device__ __forceinline__ u32 pack(float first, float second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

__device__ __forceinline__ u32 to_fp8(float a, float b, float c, float d) {
    u16 first, second;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(first) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(second) : "f"(d), "f"(c));
    return first | (u32)second << 16;
}

struct Round {
    const uint4* x;   // 8 numbers each
    uint2* out;
    i64 count;        // of eights
    float by;
};

extern "C" __global__ void round_rows(Round a) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= a.count) return;
    uint4 x = a.x[at];
    a.out[at] = make_uint2(to_fp8(low(x.x) * a.by, high(x.x) * a.by, low(x.y) * a.by, high(x.y) * a.by),
                           to_fp8(low(x.z) * a.by, high(x.z) * a.by, low(x.w) * a.by, high(x.w) * a.by));
}

struct Inner {
    const uint4* x;   // [T, 2, width / 8]
    uint2* out;       // [T, width / 8]
    i64 count;        // of eights
    int width;
    float by;
};

__device__ __forceinline__ float silu(float gate, float up) {
    return __fdividef(gate, 1.f + exp2f(-LOG2_E * gate)) * up;
}

extern "C" __global__ void inner_rows(Inner a) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= a.count) return;
    int eights = a.width / 8;
    const uint4* row = a.x + at / eights * 2 * eights + at % eights;
    uint4 g = row[0], u = row[eights];
    float b = a.by;
    a.out[at] = make_uint2(
        to_fp8(silu(low(g.x), low(u.x)) * b, silu(high(g.x), high(u.x)) * b, silu(low(g.y), low(u.y)) * b,
               silu(high(g.y), high(u.y)) * b),
        to_fp8(silu(low(g.z), low(u.z)) * b, silu(high(g.z), high(u.z)) * b, silu(low(g.w), low(u.w)) * b,
               silu(high(g.w), high(u.w)) * b));
}

struct Norm {
    const u32* x;     // [T, width / 2]
    const u32* norm;  // [width / 2]
    u32* out;
    int width;
    float epsilon;
};

// A block for each row.
extern "C" __global__ void norm_rows(Norm a) {
    __shared__ float sums[32];
    int pairs = a.width / 2, lane = threadIdx.x % 32;
    const u32* x = a.x + (i64)blockIdx.x * pairs;
    float sum = 0.f;
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) sum += low(x[i]) * low(x[i]) + high(x[i]) * high(x[i]);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float all = 0.f;
    for (int w = 0; w < blockDim.x / 32; w++) all += sums[w];
    float scale = rsqrtf(all / a.width + a.epsilon);
    for (int i = threadIdx.x; i < pairs; i += blockDim.x)
        a.out[(i64)blockIdx.x * pairs + i] =
            pack(low(x[i]) * scale * low(a.norm[i]), high(x[i]) * scale * high(a.norm[i]));
}
