// Attention of a step: up to 8 tokens over the cache, which is read once for each 8 or 16 query rows of a kv head.
//
// Scores are keys (16 rows of mma) by queries (8 columns), and outputs values, dimension by dimension, by weights: a
// step of one token has 7 or 8 query rows of a kv head, half of what mma's rows would hold.

struct Attention {
    const u16* queries;            // [TOKENS, HEADS, HEAD_DIM], rotated
    const u8* cache[2];            // [KV_HEADS, capacity, HEAD_DIM]
    const float* cache_scales[2];  // [KV_HEADS, HEAD_DIM] of caches in 8 bits
    const i64* past_length;        // [1]
    int capacity;
    float* sums;                   // [stretches, KV_HEADS, QUERIES, HEAD_DIM]
    float2* shares;                // [stretches, KV_HEADS, QUERIES]: largest score, sum of exponentials
    u32* tickets;                  // [KV_HEADS, blocks of query rows, 2], zeros between launches
    u16* out;                      // [TOKENS, HEADS, HEAD_DIM]
    int out_half;                  // `out` is fp16 whatever the activation is
};

constexpr int READERS = 8;                                        // warps of a block
constexpr int TILES = QUERIES > 8 ? 2 : 1;                        // of 8 query rows, of a block
constexpr int ROWS = 8 * TILES;
constexpr int ROW_BLOCKS = (QUERIES + ROWS - 1) / ROWS;
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
constexpr int LONG = 8 * (OWN + 1) + 4;
__device__ __forceinline__ int place_of(int row, int d) { return row * LONG + d / OWN * (OWN + 1) + d % OWN; }

// A warp's ring, in 16 bytes: 16 keys, then their values, then the next keys. In memory they are one stretch; here loads
// of a row change places, so that lanes that read together meet no bank twice.
constexpr int LOADS = HEAD_DIM * STRIDE / 16;                     // of a row
constexpr int UNIT = 16 * LOADS;
constexpr int DEPTH = RING_DEPTH;

// Read for keys g of 0 to 7, loads c of four.
__device__ __forceinline__ int key_place(int row, int load) {
    return row * LOADS + (LOADS < 8 ? load : load ^ row % 2 * 4);
}

// Read for keys 2 c, then 2 c + 1, and loads of all g, one or two each.
__device__ __forceinline__ int value_place(int row, int load) {
    int c = row / 2 % 4;
    return row * LOADS + (load ^ (LOADS < 8 ? c : LOADS == 8 ? c * 2 : c % 2 | c / 2 * 4));
}

// 16 rows, which lie one behind the other. Those behind the step's last hold earlier numbers, or zeros: a cache starts so,
// and has room for a multiple of 16.
template <bool KEYS> __device__ __forceinline__ void send_for_unit(uint4* unit, const u8* rows, int lane) {
#pragma unroll
    for (int i = 0; i < LOADS / 2; i++) {
        int row = (i * 32 + lane) / LOADS, load = (i * 32 + lane) % LOADS;
        send_for(unit + (KEYS ? key_place(row, load) : value_place(row, load)), rows + (i * 32 + lane) * 16);
    }
}

// A thread's OWN elements of a row of values.
__device__ __forceinline__ void read_values(u32 (&words)[VALUE_WORDS], const uint4* unit, int row, int group) {
    if (VALUE_WORDS == 2) {
        uint2 found = ((const uint2*)(unit + value_place(row, group / 2)))[group % 2];
        words[0] = found.x;
        words[1] = found.y;
    } else {
#pragma unroll
        for (int w = 0; w + 4 <= VALUE_WORDS; w += 4) {
            uint4 found = unit[value_place(row, group * (VALUE_WORDS / 4) + w / 4)];
            words[w] = found.x;
            words[w + 1] = found.y;
            words[w + 2] = found.z;
            words[w + 3] = found.w;
        }
    }
}

// A query row's elements as B, in the order in which a thread has keys' (lane % 4 of a key's quarters).
__device__ __forceinline__ void read_query(u32 (&query)[KEY_LOADS][PER_LOAD / 2], const Attention& a, int kv, int row,
                                           int column) {
    const u16* from = a.queries + ((row / GROUP) * HEADS + kv * GROUP + row % GROUP) * HEAD_DIM;
    float by = rsqrtf((float)HEAD_DIM) * LOG2_E;
#pragma unroll
    for (int n = 0; n < KEY_LOADS; n++) {
#pragma unroll
        for (int i = 0; i < PER_LOAD / 8; i++) {
            int d = n * 4 * PER_LOAD + column * PER_LOAD + 8 * i;
            uint4 found = make_uint4(0u, 0u, 0u, 0u);
            if (row < QUERIES) found = __ldcg((const uint4*)(from + d));
            u32 pairs[4] = {found.x, found.y, found.z, found.w};
#pragma unroll
            for (int p = 0; p < 4; p++) {
                float low = wide_low<STORED>(pairs[p]) * by, high = wide_high<STORED>(pairs[p]) * by;
                if (CACHE != FLOATS) {
                    float2 scale = __ldg((const float2*)(a.cache_scales[0] + kv * HEAD_DIM + d + 2 * p));
                    low *= scale.x;
                    high *= scale.y;
                }
                query[n][4 * i + p] = pack<MET>(low, high);
            }
        }
    }
}

enum { NOTHING = 0, OWN_SHARE = 1, ALL_SHARES = 2 };        // what is left for a block to join
constexpr u32 GAVE_UP = 1u << 31, CLAIMED = 1u << 30, COUNT = CLAIMED - 1;  // of the first ticket
constexpr u32 PATIENCE = 4096;                              // looks of half a microsecond and more

// Until all blocks that share query rows have written their sums, which is soon: all run at once, as many as multiprocessors
// or fewer, and kernels behind this one start when all of its blocks have. But where another process or stream holds the
// places of some, which may wait for ours in turn, a block gives up and goes; of those that see the last one come, which
// does so itself, the first joins for all.
__device__ __forceinline__ int wait_for_others(u32* tickets, int blocks) {
    __shared__ int left;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(tickets, 1u);
        u32 seen = load_acquire(tickets), all = (u32)blocks;
        for (u32 looks = 0; (seen & COUNT) < all && looks < PATIENCE; looks++) seen = load_acquire(tickets);
        if ((seen & COUNT) < all) {
            seen = atomicOr(tickets, GAVE_UP);
            __threadfence();
        }
        left = OWN_SHARE;
        if ((seen & COUNT) < all) left = NOTHING;
        else if (seen & GAVE_UP) left = atomicOr(tickets, CLAIMED) & CLAIMED ? NOTHING : ALL_SHARES;
    }
    __syncthreads();
    return left;
}

// The sums of all stretches, a lane a stretch: of the rows' elements, by fours, the one at `place` of every `each`.
__device__ __forceinline__ void join_stretches(const Attention& a, int kv, int first_row, int valid, int place, int each,
                                               int stretches) {
    int lanes = stretches > 16 ? 32 : stretches > 8 ? 16 : 8, lane = threadIdx.x % lanes;
    i64 from = (i64)kv * QUERIES + first_row;
    constexpr int next = KV_HEADS * QUERIES, FOURS = HEAD_DIM / 4;
#pragma unroll 1
    for (int i = threadIdx.x / lanes * each + place; i - place < valid * FOURS; i += READERS * 32 / lanes * each) {
        int row = min(i / FOURS, valid - 1), d = i % FOURS * 4;
        float high = -1e30f, parts = 0.f, sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 1
        for (int first = lane; first < stretches; first += 2 * lanes) {
            float2 share[2];
            float4 part[2];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                i64 at = from + (i64)min(first + n * lanes, stretches - 1) * next + row;
                share[n] = __ldcg(a.shares + at);
                part[n] = __ldcg((const float4*)(a.sums + at * HEAD_DIM + d));
                if (first + n * lanes >= stretches) share[n] = make_float2(-1e30f, 0.f);
            }
            float most = fmaxf(high, fmaxf(share[0].x, share[1].x)), less = power_of_2(high - most);
            float one = power_of_2(share[0].x - most), other = power_of_2(share[1].x - most);
            parts = parts * less + one * share[0].y + other * share[1].y;
            sum[0] = sum[0] * less + one * part[0].x + other * part[1].x;
            sum[1] = sum[1] * less + one * part[0].y + other * part[1].y;
            sum[2] = sum[2] * less + one * part[0].z + other * part[1].z;
            sum[3] = sum[3] * less + one * part[0].w + other * part[1].w;
            high = most;
        }
        float most = high;
        for (int step = lanes / 2; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
        float less = power_of_2(high - most);
        parts *= less;
#pragma unroll
        for (int n = 0; n < 4; n++) sum[n] *= less;
        for (int step = lanes / 2; step; step /= 2) {
            parts += __shfl_xor_sync(~0u, parts, step);
#pragma unroll
            for (int n = 0; n < 4; n++) sum[n] += __shfl_xor_sync(~0u, sum[n], step);
        }
        if (lane || i >= valid * FOURS) continue;
#pragma unroll
        for (int n = 0; n < 4; n++)
            sum[n] *= (CACHE != FLOATS ? a.cache_scales[1][kv * HEAD_DIM + d + n] : 1.f) / parts;
        int query_row = first_row + row;
        u16* out = a.out + ((query_row / GROUP) * HEADS + kv * GROUP + query_row % GROUP) * HEAD_DIM + d;
        bool half = a.out_half;
        u32 low = half ? pack<true>(in_range(sum[0]), in_range(sum[1])) : pack<STORED>(sum[0], sum[1]);
        u32 upper = half ? pack<true>(in_range(sum[2]), in_range(sum[3])) : pack<STORED>(sum[2], sum[3]);
        *(uint2*)out = make_uint2(low, upper);
    }
}

// A block: a stretch of the cache, a kv head, ROWS of its query rows (row = token * GROUP + head). There are as many as
// multiprocessors, and each takes one: a block asks for more than half of its shared memory (`step_blocks.py`), but, for one
// tile of rows, for half of its registers, so that a block of the next kernel finds room to start.
extern "C" __global__ void __launch_bounds__(READERS * 32, TILES == 1 ? 2 : 1) attention(Attention a) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, column = lane % 4;
    constexpr int sharing = KV_HEADS * ROW_BLOCKS;
    int head_rows = blockIdx.x % sharing, kv = head_rows % KV_HEADS, first_row = head_rows / KV_HEADS * ROWS;
    int stretch = blockIdx.x / sharing, stretches = gridDim.x / sharing;
    int valid = min(ROWS, QUERIES - first_row);
    float* exchange = (float*)shared;  // [READERS * ROWS][LONG]
    __shared__ float2 weights[READERS][ROWS];  // largest score of a warp, sum of its exponentials

    start_next();
    int past = (int)a.past_length[0], length = past + TOKENS;
    int chunks = (length + 15) / 16, each = (chunks + stretches - 1) / stretches;
    int active = (chunks + each - 1) / each;
    if (stretch >= active) {
        wait_for_last();
        return;
    }
    int begin = stretch * each, end = min(begin + each, chunks);

    const u8* keys = a.cache[0] + (i64)kv * a.capacity * HEAD_DIM * STRIDE;
    const u8* values = a.cache[1] + (i64)kv * a.capacity * HEAD_DIM * STRIDE;
    uint4* ring = shared + warp * DEPTH * UNIT;
    int ahead = begin + warp;  // the chunk of which keys or values are sent for next
    auto send_keys = [&](int place) {
        if (ahead < end) send_for_unit<true>(ring + place * UNIT, keys + (i64)ahead * UNIT * 16, lane);
        close_group();
    };
    auto send_values = [&](int place) {
        if (ahead < end) send_for_unit<false>(ring + place * UNIT, values + (i64)ahead * UNIT * 16, lane);
        close_group();
        ahead += READERS;
    };
    if (CACHE != FLOATS && threadIdx.x < HEAD_DIM / 16)
        near(a.cache_scales[threadIdx.x % 2] + kv * HEAD_DIM + threadIdx.x / 2 * 32);
    // Rows of earlier steps may be read before the kernel in front is done; those of this step may not.
    bool waited = false;
#pragma unroll 1
    for (int d = 0; d < DEPTH; d++) {
        if (!waited && ahead * 16 + 16 > past) {
            wait_for_last();
            waited = true;
        }
        if (d % 2 == 0) send_keys(d);
        else send_values(d);
    }
    if (!waited) wait_for_last();

    u32 query[TILES][KEY_LOADS][PER_LOAD / 2];
    float most[TILES][2], total[TILES][2], out[TILES][OWN / 2][4];  // of rows 2 c and 2 c + 1
    int last_seen[TILES][2];                                        // the last key that a row may look at
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        read_query(query[t], a, kv, first_row + 8 * t + group, column);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            most[t][j] = -1e30f;
            total[t][j] = 0.f;
            last_seen[t][j] = past + min((first_row + 8 * t + 2 * column + j) / GROUP, TOKENS - 1);
        }
#pragma unroll
        for (int m = 0; m < OWN / 2; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) out[t][m][i] = 0.f;
    }

    int unit_now = 0;
    auto next_unit = [&]() {  // what a lane reads others have sent for
        arrived<DEPTH - 1>();
        __syncwarp();
    };
    auto turn_ring = [&](bool sends_keys) {
        __syncwarp();
        if (sends_keys) send_keys(unit_now);
        else send_values(unit_now);
        unit_now = unit_now + 1 < DEPTH ? unit_now + 1 : 0;
    };
    for (int chunk = begin + warp; chunk < end; chunk += READERS) {
        int base = chunk * 16;
        float score[TILES][4];
        next_unit();
        {
            const uint4* unit = ring + unit_now * UNIT;
            float parts[TILES][2][4] = {};  // two chains of products
#pragma unroll
            for (int l = 0; l < KEY_LOADS; l++) {
                uint4 one = unit[key_place(group, 4 * l + column)], other = unit[key_place(group + 8, 4 * l + column)];
                const u32 *first = (const u32*)&one, *second = (const u32*)&other;
#pragma unroll
                for (int i = 0; i < PER_LOAD / 2; i += 2)
#pragma unroll
                    for (int t = 0; t < TILES; t++)
                        mma<MET>(parts[t][i / 2 % 2], key_pair(first, i), key_pair(second, i), key_pair(first, i + 1),
                                 key_pair(second, i + 1), query[t][l][i], query[t][l][i + 1]);
            }
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = 0; i < 4; i++) score[t][i] = parts[t][0][i] + parts[t][1][i];
        }
        turn_ring(DEPTH % 2 == 0);
        if (base + 15 > past) {
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (base + group + i / 2 * 8 > last_seen[t][i % 2]) score[t][i] = -1e30f;
        }
        u32 weight[TILES][2];  // [tile][keys 0-7 or 8-15] as B
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            float high[2], less[2], part[4];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                high[j] = fmaxf(score[t][j], score[t][2 + j]);
#pragma unroll
                for (int step = 4; step < 32; step *= 2) high[j] = fmaxf(high[j], __shfl_xor_sync(~0u, high[j], step));
                high[j] = fmaxf(high[j], most[t][j]);
                less[j] = power_of_2(most[t][j] - high[j]);
                most[t][j] = high[j];
            }
#pragma unroll
            for (int i = 0; i < 4; i++) part[i] = score[t][i] <= -1e30f ? 0.f : power_of_2(score[t][i] - high[i % 2]);
#pragma unroll
            for (int j = 0; j < 2; j++) total[t][j] = total[t][j] * less[j] + part[j] + part[2 + j];
            if (__any_sync(~0u, less[0] != 1.f || less[1] != 1.f)) {
#pragma unroll
                for (int m = 0; m < OWN / 2; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) out[t][m][i] *= less[i % 2];
            }
            weight[t][0] = transposed(pack<MET>(part[0], part[1]));
            weight[t][1] = transposed(pack<MET>(part[2], part[3]));
        }
        next_unit();
        {
            u32 value[4][VALUE_WORDS];
#pragma unroll
            for (int n = 0; n < 4; n++)
                read_values(value[n], ring + unit_now * UNIT, n / 2 * 8 + 2 * column + n % 2, group);
#pragma unroll
            for (int m = 0; m < OWN / 2; m++) {
                u32 a0 = value_pair(value[0], value[1], 2 * m), a1 = value_pair(value[0], value[1], 2 * m + 1);
                u32 a2 = value_pair(value[2], value[3], 2 * m), a3 = value_pair(value[2], value[3], 2 * m + 1);
#pragma unroll
                for (int t = 0; t < TILES; t++) mma<MET>(out[t][m], a0, a1, a2, a3, weight[t][0], weight[t][1]);
            }
        }
        turn_ring(DEPTH % 2 == 1);
    }

    // the warps of this block, whose rings are done with
    arrived<0>();
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int row = 8 * t + 2 * column + j;
#pragma unroll
            for (int step = 4; step < 32; step *= 2) total[t][j] += __shfl_xor_sync(~0u, total[t][j], step);
            if (group == 0) weights[warp][row] = make_float2(most[t][j], total[t][j]);
#pragma unroll
            for (int m = 0; m < OWN / 2; m++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    exchange[place_of(warp * ROWS + row, group * OWN + 2 * m + h)] = out[t][m][2 * h + j];
        }
    __syncthreads();
    i64 place = ((i64)stretch * KV_HEADS + kv) * QUERIES + first_row;
    if (threadIdx.x < valid) {
        int row = threadIdx.x;
        float high = -1e30f, parts = 0.f;
        for (int w = 0; w < READERS; w++) high = fmaxf(high, weights[w][row].x);
        for (int w = 0; w < READERS; w++) {
            float less = power_of_2(weights[w][row].x - high);
            parts += less * weights[w][row].y;
            weights[w][row].x = less;
        }
        a.shares[place + row] = make_float2(high, parts);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < valid * HEAD_DIM; i += READERS * 32) {
        int row = i / HEAD_DIM;
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < READERS; w++) sum += weights[w][row].x * exchange[place_of(w * ROWS + row, i % HEAD_DIM)];
        a.sums[place * HEAD_DIM + i] = sum;
    }

    u32* tickets = a.tickets + 2 * head_rows;
    int left = wait_for_others(tickets, active);
    u32 before = threadIdx.x == 0 ? atomicAdd(tickets + 1, 1u) : 0u;  // its way there and back is the joining's
    bool alone = left == ALL_SHARES;
    if (left != NOTHING) join_stretches(a, kv, first_row, valid, alone ? 0 : stretch, alone ? 1 : active, active);
    if (threadIdx.x == 0 && before == (u32)active - 1) tickets[0] = tickets[1] = 0u;  // nobody looks any more
}
