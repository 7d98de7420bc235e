// A decoder step: up to 8 tokens through all layers, every weight and cached row read once, as fast as memory gives.
//
//   begin   embeddings -> residual (float32), cos and sin of this step's positions
//   a layer, five kernels:
//     product<QKV>       norm, q k v product, bias, rotation; rows of k and v go into the cache
//     attention          each block a stretch of the cache, all query heads of one kv head; all blocks join them
//     product<RESIDUAL>  output product, added to the residual
//     product<GATE_UP>   norm, gate and up products, silu(gate) * up
//     product<RESIDUAL>  down product, added to the residual
//   finish  norm -> hidden_post_norm
//
// This file, then step_numbers.cu, step_ends.cu, step_product.cu and step_attention.cu, are one source.
// Compiled for one model and one number of tokens by the macros that `cuda_steps.py` defines: TOKENS, HIDDEN, HEADS,
// KV_HEADS, HEAD_DIM, EPSILON, BF16 (0: fp16), CACHE (FLOATS, INT8 or FP8), RING_DEPTH (of attention). No headers: NVRTC
// comes without CUDA's.
//
// Products are mma.m16n8k16 with 16 rows of the weight as A and the tokens as B. Which k a thread holds is free as long
// as A and B agree, so each thread takes 16 neighbouring bytes of a row: no shared memory, no shuffles. A thread of
// group g (lane / 4) and column c (lane % 4) holds rows g and g + 8 of A, a pair: what a rotation, or silu(gate) * up,
// needs together, else any two. A tile is 8 pairs, or fewer where that shares out better among the blocks.
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
