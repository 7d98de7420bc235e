// The first and the last kernel of a step, and the norm that others begin with.

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
        if (lane == 0) scratch[t * warps + warp] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        float sum = 0.f;
        for (int w = 0; w < warps; w++) sum += scratch[t * warps + w];
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
            float x = __ldcg(a.residual + t * HIDDEN + i);
            squares[t] += x * x;
        }
    }
    normed(squares, scratch, scale);
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        for (int i = threadIdx.x; i < HIDDEN; i += blockDim.x)
            a.hidden_post_norm[t * HIDDEN + i] =
                rounded<STORED>(__ldcg(a.residual + t * HIDDEN + i) * scale[t] * wide<STORED>(a.norm[i]));
}
