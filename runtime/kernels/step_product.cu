// Products of a step: a matrix by up to 8 tokens, with what stands before and behind it.

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
