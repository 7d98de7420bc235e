// Attention of the vision encoder: rows of a segment (a window, or a whole temporal grid) attend to one another.
//
// A block takes 64 queries of one head and segment, a warp 16 of them, and goes through the segment's keys 64 at a time
// with a running softmax. Queries and keys are rotated while they are read: pairs (i, i + HEAD_DIM / 2) by a row's own
// angles. Compiled by the macros HEADS, HEAD_DIM (a multiple of 16, at most 112) and BF16 (0: fp16). No headers: NVRTC
// comes without CUDA's.

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

constexpr int HIDDEN = HEADS * HEAD_DIM, PAIRS = HEAD_DIM / 2;
constexpr int TILE = 64, WARPS = 4, THREADS = WARPS * 32;
constexpr int STRIDE = HEAD_DIM + 8;      // of a row in shared memory: eight rows' 16 bytes meet no bank twice
constexpr float LOG2_E = 1.4426950408889634f;

struct Segments {
    const u16* qkv;        // [rows, 3, HEADS, HEAD_DIM]
    const float* cos;      // [patches, PAIRS]: row r turns by angles r % patches
    const float* sin;
    const int* ends;       // [segments + 1]: where segments begin, and the last one ends
    u16* out;              // [rows, HEADS, HEAD_DIM]
    int patches, blocks;   // blocks of TILE queries in the longest segment
};

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
#if BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
}

__device__ __forceinline__ float wide(u16 value) {
#if BF16
    return __uint_as_float((u32)value << 16);
#else
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value));
    return out;
#endif
}

__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if BF16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 tiles of shared memory; lane l names row l % 8 of tile l / 8.
template <bool TURNED> __device__ __forceinline__ void load_tiles(u32 (&tiles)[4], const u16* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    if (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(at) : "memory");
}

// Rows first ... of queries or keys, rotated and multiplied by `by`; rows from `end` on repeat the last one.
__device__ __forceinline__ void stage_turned(u16* to, const Segments& a, const u16* from, int first, int end,
                                             float by) {
    for (int i = threadIdx.x; i < TILE * PAIRS / 8; i += THREADS) {
        int row = i / (PAIRS / 8), at = i % (PAIRS / 8) * 8;
        int global = min(first + row, end - 1);
        const u16* source = from + (i64)global * 3 * HIDDEN + at;
        uint4 low = *(const uint4*)source, high = *(const uint4*)(source + PAIRS);
        const float* cos = a.cos + (i64)(global % a.patches) * PAIRS + at;
        const float* sin = a.sin + (i64)(global % a.patches) * PAIRS + at;
        const u16* x = (const u16*)&low;
        const u16* y = (const u16*)&high;
        u32 first_half[4], second_half[4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            float2 c = ((const float2*)cos)[n], s = ((const float2*)sin)[n];
            float x0 = wide(x[2 * n]), x1 = wide(x[2 * n + 1]), y0 = wide(y[2 * n]), y1 = wide(y[2 * n + 1]);
            first_half[n] = pack((x0 * c.x - y0 * s.x) * by, (x1 * c.y - y1 * s.y) * by);
            second_half[n] = pack((y0 * c.x + x0 * s.x) * by, (y1 * c.y + x1 * s.y) * by);
        }
        u16* target = to + row * STRIDE + at;
        *(uint4*)target = make_uint4(first_half[0], first_half[1], first_half[2], first_half[3]);
        *(uint4*)(target + PAIRS) = make_uint4(second_half[0], second_half[1], second_half[2], second_half[3]);
    }
}

__device__ __forceinline__ void stage(u16* to, const u16* from, int first, int end) {
    for (int i = threadIdx.x; i < TILE * HEAD_DIM / 8; i += THREADS) {
        int row = i / (HEAD_DIM / 8), at = i % (HEAD_DIM / 8) * 8;
        *(uint4*)(to + row * STRIDE + at) = *(const uint4*)(from + (i64)min(first + row, end - 1) * 3 * HIDDEN + at);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) segments(Segments a) {
    __shared__ __align__(16) u16 queries[TILE * STRIDE], keys[TILE * STRIDE], values[TILE * STRIDE];
    int segment = blockIdx.x / a.blocks, start = a.ends[segment], end = a.ends[segment + 1];
    int first = start + blockIdx.x % a.blocks * TILE;
    if (first >= end) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, column = lane % 4;
    int tile = lane / 8, row = lane % 8;
    const u16* head = a.qkv + blockIdx.y * HEAD_DIM;

    stage_turned(queries, a, head, first, end, rsqrtf((float)HEAD_DIM) * LOG2_E);
    stage_turned(keys, a, head + HIDDEN, start, end, 1.f);
    stage(values, head + 2 * HIDDEN, start, end);
    __syncthreads();
    u32 query[HEAD_DIM / 16][4];
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++)
        load_tiles<false>(query[k], queries + (warp * 16 + tile % 2 * 8 + row) * STRIDE + k * 16 + tile / 2 * 8);

    float out[HEAD_DIM / 8][4], most[2] = {-1e30f, -1e30f}, total[2] = {0.f, 0.f};
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[n][i] = 0.f;

    for (int base = start; base < end; base += TILE) {
        if (base != start) {
            __syncthreads();
            stage_turned(keys, a, head + HIDDEN, base, end, 1.f);
            stage(values, head + 2 * HIDDEN, base, end);
            __syncthreads();
        }
        float score[TILE / 8][4];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) score[n][i] = 0.f;
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) {
#pragma unroll
            for (int n = 0; n < TILE / 8; n += 2) {
                u32 b[4];
                load_tiles<false>(b, keys + (n * 8 + tile / 2 * 8 + row) * STRIDE + k * 16 + tile % 2 * 8);
                mma(score[n], query[k], b[0], b[1]);
                mma(score[n + 1], query[k], b[2], b[3]);
            }
        }
        u32 weight[TILE / 16][4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float high = most[r];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& s = score[n][2 * r + i];
                    if (base + n * 8 + 2 * column + i >= end) s = -1e30f;
                    high = fmaxf(high, s);
                }
            high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
            high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
            float less = exp2f(most[r] - high);
            most[r] = high;
            total[r] *= less;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                out[n][2 * r] *= less;
                out[n][2 * r + 1] *= less;
            }
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
                float x = exp2f(score[n][2 * r] - high), y = exp2f(score[n][2 * r + 1] - high);
                total[r] += x + y;
                weight[n / 2][n % 2 * 2 + r] = pack(x, y);
            }
        }
#pragma unroll
        for (int k = 0; k < TILE / 16; k++) {
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n += 2) {
                u32 b[4];
                load_tiles<true>(b, values + (k * 16 + tile % 2 * 8 + row) * STRIDE + (n + tile / 2) * 8);
                mma(out[n], weight[k], b[0], b[1]);
                mma(out[n + 1], weight[k], b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        int global = first + warp * 16 + group + 8 * r;
        if (global >= end) continue;
        float by = 1.f / total[r];
        u16* to = a.out + (i64)global * HIDDEN + blockIdx.y * HEAD_DIM + 2 * column;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) *(u32*)(to + n * 8) = pack(out[n][2 * r] * by, out[n][2 * r + 1] * by);
    }
}
