// Attention of a step: up to 8 tokens over the cache, which is read once for each 16 query rows of a kv head.

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
