// The first and the last kernel of a step, and the norm that others begin with.

// What is another at each step, at one place on the device, which is written before it.
struct Mail {
    i64 past_length;            // read by all kernels before the first is done
    const u16* embeddings;      // [TOKENS, HIDDEN]
    u16* hidden_post_norm;      // [TOKENS, HIDDEN]
    i64 positions[24];          // [3, TOKENS]
};

struct Begin {
    const Mail* mail;
    const float* frequencies;   // [PAIRS]
    const int* axes;            // [PAIRS]: which of the three positions turns a pair
    float* residual;            // [TOKENS, HIDDEN]
    float2* turns;              // [TOKENS, PAIRS]: cos, sin
};

extern "C" __global__ void begin(Begin a) {
    start_next();
    const u16* embeddings = a.mail->embeddings;
    int at = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
    for (int i = at; i < TOKENS * HIDDEN; i += all) a.residual[i] = wide<STORED>(embeddings[i]);
    for (int i = at; i < TOKENS * PAIRS; i += all) {
        float angle = (float)a.mail->positions[a.axes[i % PAIRS] * TOKENS + i / PAIRS] * a.frequencies[i % PAIRS];
        float2 turn;
        sincosf(angle, &turn.y, &turn.x);
        a.turns[i] = turn;
    }
}

// Reciprocal root mean square of each row, the same in every thread. All threads of a block take part.
template <int ROWS>
__device__ __forceinline__ void normed(const float (&squares)[ROWS], float* scratch, float (&scale)[ROWS]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int t = 0; t < ROWS; t++) {
        float sum = squares[t];
#pragma unroll
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (lane == 0) scratch[t * warps + warp] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < ROWS; t++) {
        float sum = 0.f;
        for (int w = 0; w < warps; w++) sum += scratch[t * warps + w];
        scale[t] = rsqrtf(sum / HIDDEN + EPSILON);
    }
}

struct Finish {
    const float* residual;      // [TOKENS, HIDDEN]
    const u16* norm;            // [HIDDEN]
    const Mail* mail;
};

constexpr int FINISH_WARPS = 16;  // a block, which has one token

extern "C" __global__ void __launch_bounds__(FINISH_WARPS * 32) finish(Finish a) {
    constexpr int FOURS = HIDDEN / 4, EACH = (FOURS + FINISH_WARPS * 32 - 1) / (FINISH_WARPS * 32);
    __shared__ float scratch[FINISH_WARPS];
    const float4* residual = (const float4*)(a.residual + blockIdx.x * HIDDEN);
    uint2* out = (uint2*)(a.mail->hidden_post_norm + blockIdx.x * HIDDEN);
    float4 x[EACH];
    uint2 weight[EACH];
#pragma unroll
    for (int n = 0; n < EACH; n++) {
        int i = n * FINISH_WARPS * 32 + threadIdx.x;
        weight[n] = ((const uint2*)a.norm)[min(i, FOURS - 1)];
    }
    wait_for_last();
    float squares[1] = {0.f}, scale[1];
#pragma unroll
    for (int n = 0; n < EACH; n++) {
        int i = n * FINISH_WARPS * 32 + threadIdx.x;
        x[n] = i < FOURS ? __ldcg(residual + i) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int n = 0; n < EACH; n++) squares[0] += x[n].x * x[n].x + x[n].y * x[n].y + x[n].z * x[n].z + x[n].w * x[n].w;
    normed(squares, scratch, scale);
#pragma unroll
    for (int n = 0; n < EACH; n++) {
        int i = n * FINISH_WARPS * 32 + threadIdx.x;
        u32 low = pack<STORED>(x[n].x * scale[0] * wide_low<STORED>(weight[n].x),
                               x[n].y * scale[0] * wide_high<STORED>(weight[n].x));
        u32 high = pack<STORED>(x[n].z * scale[0] * wide_low<STORED>(weight[n].y),
                                x[n].w * scale[0] * wide_high<STORED>(weight[n].y));
        if (i < FOURS) out[i] = make_uint2(low, high);
    }
}
