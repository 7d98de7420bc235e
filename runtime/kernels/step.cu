// A decoder step: up to 8 tokens through all layers, every weight and cached row read once, as fast as memory gives.
//
//   begin   embeddings -> residual (float32), cos and sin of this step's positions
//   a layer, five kernels:
//     product<QKV>       norm, q k v product, bias, rotation; rows of k and v go into the cache
//     attention          each block a stretch of the cache, all query heads of one kv head; the last block joins
//     product<RESIDUAL>  output product, added to the residual
//     product<GATE_UP>   norm, gate and up products, silu(gate) * up
//     product<RESIDUAL>  down product, added to the residual
//   finish  norm -> hidden_post_norm
//
// Compiled for one model and one number of tokens by the macros that `cuda_steps.py` defines: TOKENS, HIDDEN, HEADS,
// KV_HEADS, HEAD_DIM, EPSILON, BF16 (0: fp16), CACHE (FLOATS, INT8 or FP8). No headers: NVRTC comes without CUDA's.
//
// Products are mma.m16n8k16 with 16 rows of the weight as A and the tokens as B. Which k a thread holds is free as long
// as A and B agree, so each thread takes 16 neighbouring bytes of a row: no shared memory, no shuffles. A thread of
// group g (lane / 4) and column c (lane % 4) holds rows g and g + 8; QKV and GATE_UP choose rows so that these two are
// what a rotation, or silu(gate) * up, needs together.
//
// On Hopper and newer each kernel starts while the one before still runs (programmatic dependent launch): it reads
// its first weights, which nobody writes, and only then waits for that one's results.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

enum { FLOATS = 0, INT8 = 1, FP8 = 2, INT4 = 3 };    // what a matrix or a cache holds
enum { QKV = 0, RESIDUAL = 1, GATE_UP = 2 };         // what a product is for
enum { NONE = 0, ROW = 1, SEGMENT = 2, LANE = 3 };   // what shares a scale: all of a row, 64 bytes of it or more, less

constexpr int GROUP = HEADS / KV_HEADS;              // query heads of a kv head
constexpr int QUERIES = GROUP * TOKENS;              // query rows of a kv head
constexpr int PAIRS = HEAD_DIM / 2;                  // what a rotation turns
constexpr float LOG2_E = 1.4426950408889634f;
constexpr bool STORED = !BF16;                       // the activation's type: fp16 or not
// Matrices and caches of 8 and 4 bits are multiplied in fp16, which they become in one or two instructions. What meets
// them is in its range: normed inputs, averages of values, and an MLP's inner numbers divided by INNER_STEP.
constexpr float INNER_STEP = 64.f, HIGHEST = 65504.f;
template <int FORMAT> struct Half { static constexpr bool value = FORMAT != FLOATS || STORED; };

// ---- numbers: bf16 or fp16 (HALF), two to a word ----

template <bool HALF> __device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
    if (HALF)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

template <bool HALF> __device__ __forceinline__ u16 rounded(float value) { return (u16)pack<HALF>(value, 0.f); }

template <bool HALF> __device__ __forceinline__ float wide(u16 value) {
    if (!HALF) return __uint_as_float((u32)value << 16);
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value));
    return out;
}

template <bool HALF> __device__ __forceinline__ float wide_low(u32 both) { return wide<HALF>((u16)both); }
template <bool HALF> __device__ __forceinline__ float wide_high(u32 both) { return wide<HALF>((u16)(both >> 16)); }

__device__ __forceinline__ u32 minus(u32 a, u32 b) {
    u32 out;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

__device__ __forceinline__ u32 times(u32 a, u32 b) {
    u32 out;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

// Two fp8 (e4m3) numbers as fp16, exactly.
__device__ __forceinline__ u32 from_fp8(u16 pair) {
    u32 out;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(pair));
#else
    u32 halves = __byte_perm(pair, 0, 0x1404);  // the exponent keeps its offset of 7 in place of 15: 2^8 mends that
    out = times((halves & 0x80008000u) | (halves & 0x7f007f00u) >> 1, 0x5c005c00u);
#endif
    return out;
}

// Bytes 0, 1 (2, 3 with `second`) of a word as fp16: b - 128 by way of 1024 + b.
__device__ __forceinline__ u32 from_bytes(u32 word, bool second) {
    return minus(__byte_perm(word, 0x64646464u, second ? 0x4342 : 0x4140), 0x64806480u);
}

// Nibbles `shift / 4` and `shift / 4 + 4` of a word as fp16: q - 8 by way of 1024 + q.
__device__ __forceinline__ u32 from_nibbles(u32 word, int shift) {
    return minus((word >> shift & 0x000f000fu) | 0x64006400u, 0x64086408u);
}

__device__ __forceinline__ u8 to_fp8(float value) {
    u16 both;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(0.f), "f"(value));
#else
    both = 0;  // the engine keeps fp8 caches from such GPUs
#endif
    return (u8)both;
}

// Of fp16; what is no number stays none, so that it is found.
__device__ __forceinline__ float in_range(float value) {
    return value > HIGHEST ? HIGHEST : value < -HIGHEST ? -HIGHEST : value;
}

__device__ __forceinline__ u8 to_int8(float value) {
    return (u8)(signed char)fminf(fmaxf(rintf(value), -128.f), 127.f);
}

// ---- memory and the tensor cores ----

__device__ __forceinline__ uint4 load_once(const void* address) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
    return v;
}

__device__ __forceinline__ void start_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_last() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <bool HALF>
__device__ __forceinline__ void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    if (HALF)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- begin, finish ----

struct Begin {
    const u16* embeddings;      // [TOKENS, HIDDEN]
    const i64* positions;       // [3, TOKENS]
    const float* frequencies;   // [PAIRS]
    const int* axes;            // [PAIRS]: which of the three positions turns a pair
    float* residual;            // [TOKENS, HIDDEN]
    float2* turns;              // [TOKENS, PAIRS]: cos, sin
};

extern "C" __global__ void begin(Begin a) {
    start_next();
    int at = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
    for (int i = at; i < TOKENS * HIDDEN; i += all) a.residual[i] = wide<STORED>(a.embeddings[i]);
    for (int i = at; i < TOKENS * PAIRS; i += all) {
        float angle = (float)a.positions[a.axes[i % PAIRS] * TOKENS + i / PAIRS] * a.frequencies[i % PAIRS];
        float2 turn;
        sincosf(angle, &turn.y, &turn.x);
        a.turns[i] = turn;
    }
}

// Reciprocal root mean square of each token's row, the same in every thread. All threads of a block take part.
__device__ __forceinline__ void normed(const float (&squares)[TOKENS], float* scratch, float (&scale)[TOKENS]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        float sum = squares[t];
#pragma unroll
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (lane == 0) scratch[t * 8 + warp] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        float sum = 0.f;
        for (int w = 0; w < warps; w++) sum += scratch[t * 8 + w];
        scale[t] = rsqrtf(sum / HIDDEN + EPSILON);
    }
}

struct Finish {
    const float* residual;      // [TOKENS, HIDDEN]
    const u16* norm;            // [HIDDEN]
    u16* hidden_post_norm;      // [TOKENS, HIDDEN]
};

extern "C" __global__ void finish(Finish a) {
    __shared__ float scratch[TOKENS * 8];
    wait_for_last();
    float squares[TOKENS], scale[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        squares[t] = 0.f;
        for (int i = threadIdx.x; i < HIDDEN; i += blockDim.x) {
            float x = a.residual[t * HIDDEN + i];
            squares[t] += x * x;
        }
    }
    normed(squares, scratch, scale);
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        for (int i = threadIdx.x; i < HIDDEN; i += blockDim.x)
            a.hidden_post_norm[t * HIDDEN + i] =
                rounded<STORED>(a.residual[t * HIDDEN + i] * scale[t] * wide<STORED>(a.norm[i]));
}

// ---- products ----

struct Product {
    const u8* weight[2];        // [rows, inputs] as the format has them; for GATE_UP gate and up
    const void* scales[2];      // [rows, inputs / block]: float32 of fp8, else of the activation's type
    int inputs, block, tiles;   // tiles of 16 rows (of GATE_UP 8 of each matrix)
    float step;                 // RESIDUAL: what x was divided by
    int out_half;               // GATE_UP: `out` is fp16, divided by INNER_STEP, whatever the activation is
    const u16* x;               // RESIDUAL: [TOKENS, inputs]
    float* residual;            // [TOKENS, HIDDEN]
    const u16* norm;            // QKV, GATE_UP: [HIDDEN]
    u16* out;                   // QKV: queries [TOKENS, HEADS * HEAD_DIM]; GATE_UP: [TOKENS, rows of gate]
    // of QKV alone
    const u16* bias;            // [rows]
    const float2* turns;        // [TOKENS, PAIRS]
    const i64* past_length;     // [1]
    u8* cache[2];               // [KV_HEADS, capacity, HEAD_DIM], keys and values
    const float* cache_scales[2];  // [KV_HEADS, HEAD_DIM] of caches in 8 bits
    int capacity;
};

// Elements of a 16-byte load.
template <int FORMAT> struct Load { static constexpr int elements = FORMAT == FLOATS ? 8 : FORMAT == INT4 ? 32 : 16; };

// What a thread holds of 128 bytes of two rows: two segments of 64 bytes, 16 of them its own.
template <int FORMAT> struct Piece {
    uint4 words[2][2];                          // [segment][row]
    float scales[2][2];
    uint4 x[2][Load<FORMAT>::elements / 8];     // RESIDUAL: what a token has there
};

// Which rows of which matrix a thread's two are.
template <int KIND> struct Rows {
    int first, second;
    __device__ __forceinline__ Rows(int tile, int group) {
        if (KIND == QKV) {
            first = tile / (HEAD_DIM / 16) * HEAD_DIM + tile % (HEAD_DIM / 16) * 8 + group;
            second = first + PAIRS;
        } else if (KIND == RESIDUAL) {
            first = tile * 16 + group;
            second = first + 8;
        } else {
            first = second = tile * 8 + group;
        }
    }
};

template <int FORMAT> __device__ __forceinline__ float scale_at(const void* scales, i64 index) {
    return FORMAT == FP8 ? __ldg((const float*)scales + index) : wide<STORED>(__ldg((const u16*)scales + index));
}

template <int FORMAT, int SCALING, int KIND>
__device__ __forceinline__ void load(Piece<FORMAT>& piece, const Product& a, int tile, int part, int lane) {
    Rows<KIND> rows(tile, lane / 4);
    constexpr int elements = Load<FORMAT>::elements;
    i64 row_bytes = (i64)a.inputs * 16 / elements;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int matrix = KIND == GATE_UP ? r : 0;
        i64 row = r ? rows.second : rows.first;
        const u8* from = a.weight[matrix] + row * row_bytes + part * 128 + lane % 4 * 16;
#pragma unroll
        for (int s = 0; s < 2; s++) {
            piece.words[s][r] = load_once(from + 64 * s);
            if (SCALING == SEGMENT || SCALING == LANE) {
                int k = ((part * 2 + s) * 4 + (SCALING == LANE ? lane % 4 : 0)) * elements;
                piece.scales[s][r] = scale_at<FORMAT>(a.scales[matrix], row * (a.inputs / a.block) + k / a.block);
            }
        }
    }
}

// 16 bytes of two rows by the tokens' same elements.
template <int FORMAT, int SCALING>
__device__ __forceinline__ void multiply(float (&sum)[4], const uint4 (&words)[2], const float (&scales)[2],
                                         const uint4* tokens) {
    constexpr bool HALF = Half<FORMAT>::value;
    const u32* rows[2] = {(const u32*)&words[0], (const u32*)&words[1]};
    u32 step[2] = {pack<true>(scales[0], scales[0]), pack<true>(scales[1], scales[1])};
    constexpr int loads = Load<FORMAT>::elements / 8;  // of 8 tokens' elements
#pragma unroll
    for (int l = 0; l < loads; l++) {
        uint4 b = tokens[l];
        u32 p[2][4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                if (FORMAT == FLOATS) p[r][n] = rows[r][n];
                if (FORMAT == INT4) p[r][n] = from_nibbles(rows[r][l], 4 * n);
                if (FORMAT == INT8) p[r][n] = from_bytes(rows[r][2 * l + n / 2], n % 2);
                if (FORMAT == FP8) p[r][n] = from_fp8((u16)(rows[r][2 * l + n / 2] >> n % 2 * 16));
                if (SCALING == LANE) p[r][n] = times(p[r][n], step[r]);
            }
        }
        if (FORMAT == INT4)  // nibbles n and n + 4 lie together
            b = make_uint4(__byte_perm(b.x, b.z, 0x5410), __byte_perm(b.x, b.z, 0x7632),
                           __byte_perm(b.y, b.w, 0x5410), __byte_perm(b.y, b.w, 0x7632));
        mma<HALF>(sum, p[0][0], p[1][0], p[0][1], p[1][1], b.x, b.y);
        mma<HALF>(sum, p[0][2], p[1][2], p[0][3], p[1][3], b.z, b.w);
    }
}

// A token's row of normed inputs in shared memory is this much longer, so that two tokens' loads meet no bank twice.
template <int FORMAT> struct Padding { static constexpr int elements = FORMAT == FLOATS ? 32 : 8; };

// The normed residual in shared memory. All threads of a block take part.
template <int FORMAT> __device__ __forceinline__ void stage(const Product& a, u16* staged, float* scratch) {
    constexpr bool HALF = Half<FORMAT>::value;
    float squares[TOKENS], scale[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) squares[t] = 0.f;
    for (int i = threadIdx.x * 4; i < HIDDEN; i += blockDim.x * 4) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float4 x = *(const float4*)(a.residual + t * HIDDEN + i);
            squares[t] += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
    }
    normed(squares, scratch, scale);
    for (int i = threadIdx.x * 4; i < HIDDEN; i += blockDim.x * 4) {
        uint2 weight = *(const uint2*)(a.norm + i);
        float w0 = wide_low<STORED>(weight.x), w1 = wide_high<STORED>(weight.x);
        float w2 = wide_low<STORED>(weight.y), w3 = wide_high<STORED>(weight.y);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float4 x = *(const float4*)(a.residual + t * HIDDEN + i);
            u32 low = pack<HALF>(x.x * scale[t] * w0, x.y * scale[t] * w1);
            u32 high = pack<HALF>(x.z * scale[t] * w2, x.w * scale[t] * w3);
            *(uint2*)(staged + t * (HIDDEN + Padding<FORMAT>::elements) + i) = make_uint2(low, high);
        }
    }
    __syncthreads();
}

__device__ __forceinline__ void store_row(const Product& a, int which, int head, int token, int d, float value) {
    i64 row = (i64)head * a.capacity + a.past_length[0] + token;
    if (CACHE == FLOATS) {
        ((u16*)a.cache[which])[row * HEAD_DIM + d] = rounded<STORED>(value);
    } else {
        float number = value / a.cache_scales[which][head * HEAD_DIM + d];
        a.cache[which][row * HEAD_DIM + d] = CACHE == INT8 ? to_int8(number) : to_fp8(number);
    }
}

// What becomes of rows g and g + 8 of a tile, for one token.
template <int KIND>
__device__ __forceinline__ void give(const Product& a, int tile, int group, int token, float first, float second) {
    Rows<KIND> rows(tile, group);
    if (KIND == RESIDUAL) {
        float* to = a.residual + token * HIDDEN;
        __stcg(to + rows.first, __ldcg(to + rows.first) + first);
        __stcg(to + rows.second, __ldcg(to + rows.second) + second);
    } else if (KIND == GATE_UP) {
        float inner = first / (1.f + exp2f(-LOG2_E * first)) * second;
        u16* out = a.out + (i64)token * a.tiles * 8 + rows.first;
        *out = a.out_half ? rounded<true>(in_range(inner / INNER_STEP)) : rounded<STORED>(inner);
    } else {
        int head = rows.first / HEAD_DIM, d = rows.first % HEAD_DIM;
        first += wide<STORED>(a.bias[rows.first]);
        second += wide<STORED>(a.bias[rows.second]);
        if (head < HEADS + KV_HEADS) {
            float2 turn = a.turns[token * PAIRS + d];
            float turned = first * turn.x - second * turn.y;
            second = second * turn.x + first * turn.y;
            first = turned;
        }
        if (head < HEADS) {
            u16* out = a.out + (token * HEADS + head) * HEAD_DIM + d;
            out[0] = rounded<STORED>(first);
            out[PAIRS] = rounded<STORED>(second);
        } else {
            int which = head >= HEADS + KV_HEADS;
            head -= HEADS + which * KV_HEADS;
            store_row(a, which, head, token, d, first);
            store_row(a, which, head, token, d + PAIRS, second);
        }
    }
}

extern __shared__ uint4 shared[];

// The warps of a block share a tile's inputs, so that what they read at a time is close together. Where there are many
// tiles a block adds up TOGETHER of them at once: fewer barriers.
template <int FORMAT, int SCALING, int KIND>
__global__ void __launch_bounds__(256, KIND == RESIDUAL ? 2 : 3) product(Product a) {
    constexpr int TOGETHER = KIND == GATE_UP && FORMAT != FLOATS ? 2 : 1;
    constexpr int DEPTH = FORMAT == FLOATS ? 3 : 2;  // pieces on the way
    __shared__ float sums[2][8][TOGETHER][TOKENS * 16];
    __shared__ float scratch[TOKENS * 8];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    constexpr int elements = Load<FORMAT>::elements;
    int parts = a.inputs / (elements * 8);                             // of 128 bytes
    int mine = parts > warp ? (parts - warp + warps - 1) / warps : 0;  // of each tile
    int tiles = (a.tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    int all = mine * tiles;
    int token = lane / 4 % TOKENS;  // columns behind the last token are computed and not read

    start_next();
    Piece<FORMAT> ring[DEPTH];
    int ahead_tile = blockIdx.x, ahead_part = warp;
    auto fetch = [&](Piece<FORMAT>& piece) {
        load<FORMAT, SCALING, KIND>(piece, a, ahead_tile, ahead_part, lane);
        ahead_part += warps;
        if (ahead_part >= parts) {
            ahead_part = warp;
            ahead_tile += gridDim.x;
        }
    };
    int x_part = warp;
    auto fetch_x = [&](Piece<FORMAT>& piece) {
        const u16* from = a.x + token * a.inputs + (x_part * 8 + lane % 4) * elements;
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int l = 0; l < elements / 8; l++) piece.x[s][l] = ((const uint4*)(from + 4 * s * elements))[l];
        x_part = x_part + warps < parts ? x_part + warps : warp;
    };
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (d < all) fetch(ring[d]);
    wait_for_last();
    if (KIND == RESIDUAL) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (d < all) fetch_x(ring[d]);
    } else {
        stage<FORMAT>(a, (u16*)shared, scratch);
    }
    const u16* x = (const u16*)shared + token * (HIDDEN + Padding<FORMAT>::elements) + lane % 4 * elements;

    int part = warp, turn = 0, tile = blockIdx.x, done = 0;
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    auto consume = [&](const Piece<FORMAT>& piece) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const uint4* from = KIND == RESIDUAL ? piece.x[s] : (const uint4*)(x + (part * 2 + s) * 4 * elements);
            if (SCALING == SEGMENT) {
                float some[4] = {0.f, 0.f, 0.f, 0.f};
                multiply<FORMAT, SCALING>(some, piece.words[s], piece.scales[s], from);
#pragma unroll
                for (int i = 0; i < 4; i++) sum[i] += some[i] * piece.scales[s][i / 2];
            } else {
                multiply<FORMAT, SCALING>(sum, piece.words[s], piece.scales[s], from);
            }
        }
    };
    auto give_row = [&](int tile, int group, int t, float first, float second) {
        if (SCALING == ROW) {
            Rows<KIND> rows(tile, group);
            first *= scale_at<FORMAT>(a.scales[0], rows.first);
            second *= scale_at<FORMAT>(a.scales[KIND == GATE_UP], rows.second);
        }
        if (KIND == RESIDUAL) {
            first *= a.step;
            second *= a.step;
        }
        give<KIND>(a, tile, group, t, first, second);
    };
    auto finish_tile = [&]() {
        int slot = done % TOGETHER;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int column = lane % 4 * 2 + i % 2;
            if (column < TOKENS) sums[turn][warp][slot][column * 16 + lane / 4 + i / 2 * 8] = sum[i];
            sum[i] = 0.f;
        }
        done++;
        tile += gridDim.x;
        if (slot < TOGETHER - 1 && done < tiles) return;
        __syncthreads();
        int at = threadIdx.x / (8 * TOKENS);
        if (at <= slot) {
            int group = threadIdx.x % 8, t = threadIdx.x / 8 % TOKENS;
            float first = 0.f, second = 0.f;
            for (int w = 0; w < warps; w++) {
                first += sums[turn][w][at][t * 16 + group];
                second += sums[turn][w][at][t * 16 + group + 8];
            }
            give_row(tile - (slot + 1 - at) * gridDim.x, group, t, first, second);
        }
        turn ^= 1;
    };

    if (mine == 0) {  // more warps than parts: this one only joins in
        for (int n = 0; n < tiles; n++) finish_tile();
        return;
    }
    for (int i = 0; i < all; i += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (i + d < all) {
                consume(ring[d]);
                if (i + d + DEPTH < all) {
                    fetch(ring[d]);
                    if (KIND == RESIDUAL) fetch_x(ring[d]);
                }
                part += warps;
                if (part >= parts) {
                    part = warp;
                    finish_tile();
                }
            }
        }
    }
}

// ---- attention ----

struct Attention {
    const u16* queries;            // [TOKENS, HEADS, HEAD_DIM], rotated
    const u8* cache[2];            // [KV_HEADS, capacity, HEAD_DIM]
    const float* cache_scales[2];  // [KV_HEADS, HEAD_DIM] of caches in 8 bits
    const i64* past_length;        // [1]
    int capacity;
    float* sums;                   // [splits, KV_HEADS, QUERIES, HEAD_DIM]
    float2* shares;                // [splits, KV_HEADS, QUERIES]: largest score, sum of exponentials
    u32* tickets;                  // [KV_HEADS, query tiles], zeros between launches
    u16* out;                      // [TOKENS, HEADS, HEAD_DIM]
    int out_half;                  // `out` is fp16 whatever the activation is
};

constexpr int WARPS = 8;
constexpr int OWN = HEAD_DIM / 8;                                 // values that a thread holds of a row of values
constexpr int STRIDE = CACHE == FLOATS ? 2 : 1;                   // bytes of an element
constexpr int KEY_LOADS = HEAD_DIM * STRIDE / 64;                 // 16-byte loads of a thread for its part of a key
constexpr int PER_LOAD = CACHE == FLOATS ? 8 : 16;
constexpr int VALUE_WORDS = OWN * STRIDE / 4;

constexpr bool MET = Half<CACHE>::value;                          // in which type cached rows are multiplied

// Two numbers of a cache in 8 bits, in the low bytes of a word.
__device__ __forceinline__ u32 from_cache(u32 pair) {
    return CACHE == FP8 ? from_fp8((u16)pair) : from_bytes(pair ^ 0x8080u, false);  // signed: b + 128, then - 128
}

// Elements `2 i`, `2 i + 1` of what a thread loaded of a key.
__device__ __forceinline__ u32 key_pair(const u32* words, int i) {
    if (CACHE == FLOATS) return words[i];
    return from_cache(words[i / 2] >> i % 2 * 16);
}

// Element `i` of two rows of values, side by side.
__device__ __forceinline__ u32 value_pair(const u32* one, const u32* other, int i) {
    if (CACHE == FLOATS) return __byte_perm(one[i / 2], other[i / 2], i % 2 ? 0x7632 : 0x5410);
    return from_cache(__byte_perm(one[i / 4], other[i / 4], i % 4 | (i % 4 + 4) << 4));
}

// Where element `d` of a row is in `exchange`: padded, so that the lanes of a warp write to different banks.
__device__ __forceinline__ int place_of(int row, int d) { return (row * 8 + d / OWN) * (OWN + 1) + d % OWN; }

struct Keys { uint4 words[2][KEY_LOADS]; };
struct Values { u32 words[4][VALUE_WORDS]; };

// A thread's part of 16 keys from `base` on: of keys g and g + 8.
__device__ __forceinline__ void load_keys(Keys& keys, const u8* from, int base, int last, int group, int column) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const u8* row = from + (i64)min(base + 8 * n + group, last) * HEAD_DIM * STRIDE + column * 16;
#pragma unroll
        for (int i = 0; i < KEY_LOADS; i++)
            asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(keys.words[n][i].x), "=r"(keys.words[n][i].y), "=r"(keys.words[n][i].z),
                           "=r"(keys.words[n][i].w) : "l"(row + 64 * i));
    }
}

// A thread's part of their values: OWN elements of keys 2 c, 2 c + 1, 2 c + 8 and 2 c + 9.
__device__ __forceinline__ void load_values(Values& values, const u8* from, int base, int last, int group, int column) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
        u32 (&words)[VALUE_WORDS] = values.words[n];
        i64 row = min(base + 8 * (n / 2) + 2 * column + n % 2, last);
        const u8* at = from + (row * HEAD_DIM + group * OWN) * STRIDE;
        if (VALUE_WORDS == 2) {
            asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(at));
        } else {
#pragma unroll
            for (int w = 0; w + 4 <= VALUE_WORDS; w += 4)
                asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                             : "=r"(words[w]), "=r"(words[w + 1]), "=r"(words[w + 2]), "=r"(words[w + 3])
                             : "l"(at + 4 * w));
        }
    }
}

// blockIdx: a stretch of the cache, a kv head, 16 of its query rows (row = token * GROUP + head).
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) attention(Attention a) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, column = lane % 4;
    int kv = blockIdx.y, first_row = blockIdx.z * 16, valid = min(16, QUERIES - first_row);
    float* exchange = (float*)shared;  // [WARPS * 16][8][OWN + 1]
    __shared__ float2 share[WARPS][16];
    __shared__ u32 ticket;

    start_next();
    int past = (int)a.past_length[0], length = past + TOKENS;
    int chunks = (length + 15) / 16, each = (chunks + gridDim.x - 1) / gridDim.x;
    int active = (chunks + each - 1) / each;
    if ((int)blockIdx.x >= active) return;
    int begin = blockIdx.x * each, end = min(begin + each, chunks);

    // Rows of earlier steps may be read before the kernel in front is done; those of this step may not.
    const u8* keys = a.cache[0] + (i64)kv * a.capacity * HEAD_DIM * STRIDE;
    const u8* values = a.cache[1] + (i64)kv * a.capacity * HEAD_DIM * STRIDE;
    Keys key;
    Values value;
    int first_base = (begin + warp) * 16;
    bool old = first_base + 16 <= past;
    if (begin + warp < end && old) {
        load_keys(key, keys, first_base, length - 1, group, column);
        load_values(value, values, first_base, length - 1, group, column);
    }
    wait_for_last();
    if (begin + warp < end && !old) {
        load_keys(key, keys, first_base, length - 1, group, column);
        load_values(value, values, first_base, length - 1, group, column);
    }

    // queries as A, in the order in which keys are loaded
    u32 query[KEY_LOADS][PER_LOAD / 2][2];
    float by = rsqrtf((float)HEAD_DIM) * LOG2_E;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = first_row + group + 8 * r;
        bool there = row < QUERIES;
        const u16* from = a.queries + ((row / GROUP) * HEADS + kv * GROUP + row % GROUP) * HEAD_DIM;
#pragma unroll
        for (int n = 0; n < KEY_LOADS; n++) {
#pragma unroll
            for (int i = 0; i < PER_LOAD / 2; i++) {
                int d = n * 4 * PER_LOAD + column * PER_LOAD + 2 * i;
                float low = 0.f, high = 0.f;
                if (there) {
                    u32 both = __ldcg((const u32*)(from + d));
                    low = wide_low<STORED>(both) * by;
                    high = wide_high<STORED>(both) * by;
                    if (CACHE != FLOATS) {
                        low *= a.cache_scales[0][kv * HEAD_DIM + d];
                        high *= a.cache_scales[0][kv * HEAD_DIM + d + 1];
                    }
                }
                query[n][i][r] = pack<MET>(low, high);
            }
        }
    }

    float most[2] = {-1e30f, -1e30f}, total[2] = {0.f, 0.f};
    float out[OWN][4];
#pragma unroll
    for (int n = 0; n < OWN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[n][i] = 0.f;
    int last_seen[2];  // the last key that a row may look at
#pragma unroll
    for (int r = 0; r < 2; r++) last_seen[r] = past + min((first_row + group + 8 * r) / GROUP, TOKENS - 1);

    for (int chunk = begin + warp; chunk < end; chunk += WARPS) {
        int base = chunk * 16;
        float score[2][4];
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) score[n][i] = 0.f;
#pragma unroll
            for (int l = 0; l < KEY_LOADS; l++) {
                const u32* words = (const u32*)&key.words[n][l];
#pragma unroll
                for (int i = 0; i < PER_LOAD / 2; i += 2)
                    mma<MET>(score[n], query[l][i][0], query[l][i][1], query[l][i + 1][0], query[l][i + 1][1],
                        key_pair(words, i), key_pair(words, i + 1));
            }
        }
        if (chunk + WARPS < end) load_keys(key, keys, base + WARPS * 16, length - 1, group, column);
        u32 weight[2][2];  // [keys 0-7 or 8-15][row]
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float high = most[r];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& s = score[n][2 * r + i];
                    if (base + 8 * n + 2 * column + i > last_seen[r]) s = -1e30f;
                    high = fmaxf(high, s);
                }
            high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
            high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
            float less = exp2f(most[r] - high);
            most[r] = high;
            total[r] *= less;
#pragma unroll
            for (int n = 0; n < OWN; n++) {
                out[n][2 * r] *= less;
                out[n][2 * r + 1] *= less;
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float low_part = score[n][2 * r] <= -1e30f ? 0.f : exp2f(score[n][2 * r] - high);
                float high_part = score[n][2 * r + 1] <= -1e30f ? 0.f : exp2f(score[n][2 * r + 1] - high);
                total[r] += low_part + high_part;
                weight[n][r] = pack<MET>(low_part, high_part);
            }
        }
#pragma unroll
        for (int n = 0; n < OWN; n++)
            mma<MET>(out[n], weight[0][0], weight[0][1], weight[1][0], weight[1][1],
                value_pair(value.words[0], value.words[1], n), value_pair(value.words[2], value.words[3], n));
        if (chunk + WARPS < end) load_values(value, values, base + WARPS * 16, length - 1, group, column);
    }

    // the warps of this block
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        if (column == 0) share[warp][group + 8 * r] = make_float2(most[r], total[r]);
#pragma unroll
        for (int n = 0; n < OWN; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)  // columns 2 c and 2 c + 1 of tile n are elements n of their own OWN
                exchange[place_of(warp * 16 + group + 8 * r, (2 * column + i) * OWN + n)] = out[n][2 * r + i];
    }
    __syncthreads();
    i64 place = ((i64)blockIdx.x * KV_HEADS + kv) * QUERIES + first_row;
    for (int i = threadIdx.x; i < valid * HEAD_DIM; i += WARPS * 32) {
        int row = i / HEAD_DIM;
        float high = -1e30f, sum = 0.f, parts = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) high = fmaxf(high, share[w][row].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float less = exp2f(share[w][row].x - high);
            sum += less * exchange[place_of(w * 16 + row, i % HEAD_DIM)];
            parts += less * share[w][row].y;
        }
        a.sums[place * HEAD_DIM + i] = sum;
        if (i % HEAD_DIM == 0) a.shares[place + row] = make_float2(high, parts);
    }

    // the stretches of the cache: whichever block is done last joins them
    __threadfence();
    __syncthreads();
    u32* counter = a.tickets + kv * gridDim.z + blockIdx.z;
    if (threadIdx.x == 0) ticket = atomicAdd(counter, 1u);
    __syncthreads();
    if ((int)ticket != active - 1) return;
    __threadfence();
    if (threadIdx.x == 0) *counter = 0u;
    i64 from = (i64)kv * QUERIES + first_row;
    constexpr int next = KV_HEADS * QUERIES;
    constexpr int BATCH = 17;  // of stretches that are on the way at once; their number is filled up with shares of 0
    int padded = (active + BATCH - 1) / BATCH * BATCH;
    float* weights = exchange;  // [16][padded]
    for (int row = warp; row < valid; row += WARPS) {
        float high = -1e30f, parts = 0.f;
        for (int s = lane; s < active; s += 32) high = fmaxf(high, __ldcg(a.shares + from + s * next + row).x);
#pragma unroll
        for (int step = 16; step; step /= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, step));
        for (int s = lane; s < padded; s += 32) {
            float2 found = __ldcg(a.shares + from + min(s, active - 1) * next + row);
            float less = s < active ? exp2f(found.x - high) : 0.f;
            weights[row * padded + s] = less;
            parts += less * found.y;
        }
#pragma unroll
        for (int step = 16; step; step /= 2) parts += __shfl_xor_sync(~0u, parts, step);
        if (lane == 0) share[0][row].y = 1.f / parts;
    }
    __syncthreads();
    for (int i = threadIdx.x * 4; i < valid * HEAD_DIM; i += WARPS * 128) {
        int row = i / HEAD_DIM, d = i % HEAD_DIM;
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
        for (int first = 0; first < padded; first += BATCH) {
#pragma unroll
            for (int n = 0; n < BATCH; n++) {
                int s = first + n;
                float by = weights[row * padded + s] * share[0][row].y;
                float4 part = __ldcg((const float4*)(a.sums + (from + min(s, active - 1) * next) * HEAD_DIM + i));
                sum = make_float4(sum.x + by * part.x, sum.y + by * part.y, sum.z + by * part.z, sum.w + by * part.w);
            }
        }
        if (CACHE != FLOATS) {
            const float* scale = a.cache_scales[1] + kv * HEAD_DIM + d;
            sum = make_float4(sum.x * scale[0], sum.y * scale[1], sum.z * scale[2], sum.w * scale[3]);
        }
        int query_row = first_row + row;
        u16* out = a.out + ((query_row / GROUP) * HEADS + kv * GROUP + query_row % GROUP) * HEAD_DIM + d;
        bool half = a.out_half;
        u32 low = half ? pack<true>(in_range(sum.x), in_range(sum.y)) : pack<STORED>(sum.x, sum.y);
        u32 high = half ? pack<true>(in_range(sum.z), in_range(sum.w)) : pack<STORED>(sum.z, sum.w);
        *(uint2*)out = make_uint2(low, high);
    }
}
