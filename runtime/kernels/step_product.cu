// Products of a step: a matrix by up to 8 tokens, with what stands before and behind it.

struct Product {
    const u8* weight[2];        // [rows, inputs] as the format has them; for GATE_UP gate and up
    const void* scales[2];      // [rows, inputs / block]: float32 of fp8, else of the activation's type
    int inputs, pairs, of_tile; // pairs of rows that a thread has together, in all and of a tile (8 or fewer)
    int blocks, shift;          // scales of a row, of 2^shift numbers each
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

// Which rows of which matrix a pair is.
template <int KIND> struct Rows {
    int first, second;
    __device__ __forceinline__ Rows(const Product& a, int pair) {
        first = KIND == QKV ? pair / PAIRS * HEAD_DIM + pair % PAIRS : pair;
        second = KIND == QKV ? first + PAIRS : KIND == RESIDUAL ? pair + a.pairs : pair;
    }
};

template <int FORMAT> __device__ __forceinline__ float scale_at(const void* scales, i64 index) {
    return FORMAT == FP8 ? __ldg((const float*)scales + index) : wide<STORED>(__ldg((const u16*)scales + index));
}

template <int FORMAT, int SCALING, int KIND>
__device__ __forceinline__ void load(Piece<FORMAT>& piece, const Product& a, int pair, int part, int lane) {
    Rows<KIND> rows(a, pair);
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
                piece.scales[s][r] = scale_at<FORMAT>(a.scales[matrix], row * a.blocks + (k >> a.shift));
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

constexpr int MOST_WARPS = 8;  // of a block

// The normed residual in shared memory. All threads of a block take part. The residual is not read through L1, which may
// hold what a kernel beside this one saw before.
template <int FORMAT> __device__ __forceinline__ void stage(const Product& a, u16* staged, float* scratch) {
    constexpr bool HALF = Half<FORMAT>::value;
    float squares[TOKENS], scale[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) squares[t] = 0.f;
    for (int i = threadIdx.x * 4; i < HIDDEN; i += blockDim.x * 4) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float4 x = __ldcg((const float4*)(a.residual + t * HIDDEN + i));
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
            float4 x = __ldcg((const float4*)(a.residual + t * HIDDEN + i));
            u32 low = pack<HALF>(x.x * scale[t] * w0, x.y * scale[t] * w1);
            u32 high = pack<HALF>(x.z * scale[t] * w2, x.w * scale[t] * w3);
            *(uint2*)(staged + t * (HIDDEN + Padding<FORMAT>::elements) + i) = make_uint2(low, high);
        }
    }
    __syncthreads();
}

__device__ __forceinline__ void store_row(const Product& a, int which, int head, i64 at, int d, float value) {
    i64 row = (i64)head * a.capacity + at;
    if (CACHE == FLOATS) {
        ((u16*)a.cache[which])[row * HEAD_DIM + d] = rounded<STORED>(value);
    } else {
        float number = value / a.cache_scales[which][head * HEAD_DIM + d];
        a.cache[which][row * HEAD_DIM + d] = CACHE == INT8 ? to_int8(number) : to_fp8(number);
    }
}

// Rows d and d + PAIRS of a head of queries, keys or values: rotated, and where they belong, in the cache behind `past`.
__device__ __forceinline__ void give_heads(const Product& a, int row, int token, float2 turn, int past, float first,
                                           float second) {
    int head = row / HEAD_DIM, d = row % HEAD_DIM;
    if (head < HEADS + KV_HEADS) {
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
        store_row(a, which, head, past + token, d, first);
        store_row(a, which, head, past + token, d + PAIRS, second);
    }
}

// What a thread needs to finish a pair of rows for one token, loaded while the tile is multiplied.
template <int FORMAT, int SCALING, int KIND> struct Duty {
    int pair, which, group, token;  // `which` of the tiles that are finished together: -1 for none
    float scales[2], beside[2];     // what is added: the residual, or the bias
    float2 turn;                    // of QKV
    int past;

    __device__ __forceinline__ Duty() : pair(0), which(-1), group(0), token(0), scales{1.f, 1.f}, beside{0.f, 0.f} {}
    __device__ __forceinline__ Duty(const Product& a, int pair, int which, int group, int token)
        : pair(pair), which(which), group(group), token(token), scales{1.f, 1.f}, beside{0.f, 0.f} {
        Rows<KIND> rows(a, pair);
        if (SCALING == ROW) {
            scales[0] = scale_at<FORMAT>(a.scales[0], rows.first);
            scales[1] = scale_at<FORMAT>(a.scales[KIND == GATE_UP], rows.second);
        }
        if (KIND == RESIDUAL) {
            beside[0] = __ldcg(a.residual + token * HIDDEN + rows.first);
            beside[1] = __ldcg(a.residual + token * HIDDEN + rows.second);
        }
        if (KIND == QKV) {
            beside[0] = wide<STORED>(__ldg(a.bias + rows.first));
            beside[1] = wide<STORED>(__ldg(a.bias + rows.second));
            turn = a.turns[token * PAIRS + rows.first % HEAD_DIM];
            past = (int)a.past_length[0];
        }
    }

    __device__ __forceinline__ void finish(const Product& a, float first, float second) const {
        Rows<KIND> rows(a, pair);
        first *= scales[0];
        second *= scales[1];
        if (KIND == RESIDUAL) {
            float* to = a.residual + token * HIDDEN;
            __stcg(to + rows.first, beside[0] + first * a.step);
            __stcg(to + rows.second, beside[1] + second * a.step);
        } else if (KIND == GATE_UP) {
            float inner = first / (1.f + power_of_2(-LOG2_E * first)) * second;
            u16* out = a.out + (i64)token * a.pairs + pair;
            *out = a.out_half ? rounded<true>(in_range(inner / INNER_STEP)) : rounded<STORED>(inner);
        } else {
            give_heads(a, rows.first, token, turn, past, first + beside[0], second + beside[1]);
        }
    }
};

// Behind whatever a kernel declares itself, whole lines: 16 bytes off, attention's ring cost it 2 us of 14.
extern __shared__ __align__(128) uint4 shared[];

// The warps of a block share a tile's inputs, so that what they read at a time is close together. Where there are many
// tiles a block adds up TOGETHER of them at once: fewer barriers.
template <int FORMAT, int SCALING, int KIND>
__global__ void __launch_bounds__(MOST_WARPS * 32, KIND == RESIDUAL ? 2 : 3) product(Product a) {
    constexpr int TOGETHER = KIND == GATE_UP && FORMAT != FLOATS ? 2 : 1;
    constexpr int DEPTH = FORMAT == FLOATS ? 3 : 2;  // pieces on the way
    constexpr int elements = Load<FORMAT>::elements;
    __shared__ float sums[2][MOST_WARPS][TOGETHER][TOKENS * 16];
    __shared__ float scratch[TOKENS * MOST_WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, step = gridDim.x;
    int parts = a.inputs / (elements * 8);                             // of 128 bytes
    int mine = parts > warp ? (parts - warp + warps - 1) / warps : 0;  // of each tile
    int all_tiles = (a.pairs + a.of_tile - 1) / a.of_tile;
    int tiles = (int)blockIdx.x < all_tiles ? (all_tiles - (int)blockIdx.x + step - 1) / step : 0;
    int all = mine * tiles;
    // Behind a tile's last pair that one is read again; and columns behind the last token are computed and not used.
    int group = min(lane / 4, a.of_tile - 1), token = lane / 4 % TOKENS;

    start_next();
    Piece<FORMAT> ring[DEPTH];
    int ahead_tile = blockIdx.x, ahead_part = warp;
    auto fetch = [&](Piece<FORMAT>& piece) {
        load<FORMAT, SCALING, KIND>(piece, a, min(ahead_tile * a.of_tile + group, a.pairs - 1), ahead_part, lane);
        ahead_part += warps;
        if (ahead_part >= parts) {
            ahead_part = warp;
            ahead_tile += step;
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
    if (KIND != RESIDUAL && threadIdx.x < HIDDEN / 64) near(a.norm + threadIdx.x * 64);
    wait_for_last();
    if (KIND == RESIDUAL) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (d < all) fetch_x(ring[d]);
    } else {
        stage<FORMAT>(a, (u16*)shared, scratch);
    }
    const u16* x = (const u16*)shared + token * (HIDDEN + Padding<FORMAT>::elements) + lane % 4 * elements;

    int part = warp, tile = blockIdx.x;
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

    // Which of a block's threads finish goes round by a warp each time, so that none falls behind.
    int turn = 0, slot = 0, left = tiles, finishing = 0;
    auto duty = [&]() {
        int at = (warp - finishing + (warp < finishing ? warps : 0)) * 32 + lane, which = at / (8 * TOKENS);
        int pair = (tile + which * step) * a.of_tile + at % 8;
        if (which >= min(TOGETHER, left) || at % 8 >= a.of_tile || pair >= a.pairs) return Duty<FORMAT, SCALING, KIND>();
        return Duty<FORMAT, SCALING, KIND>(a, pair, which, at % 8, at / 8 % TOKENS);
    };
    auto mine_to_finish = duty();
    auto finish_tile = [&]() {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int column = lane % 4 * 2 + i % 2;
            if (column < TOKENS) sums[turn][warp][slot][column * 16 + lane / 4 + i / 2 * 8] = sum[i];
            sum[i] = 0.f;
        }
        tile += step;
        if (++slot < min(TOGETHER, left)) return;
        __syncthreads();
        if (mine_to_finish.which >= 0) {
            float first = 0.f, second = 0.f;
            for (int w = 0; w < warps; w++) {
                const float* from = sums[turn][w][mine_to_finish.which] + mine_to_finish.token * 16;
                first += from[mine_to_finish.group];
                second += from[mine_to_finish.group + 8];
            }
            mine_to_finish.finish(a, first, second);
        }
        left -= slot;
        slot = 0;
        turn ^= 1;
        finishing = finishing + 1 < warps ? finishing + 1 : 0;
        mine_to_finish = duty();
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
