// Numbers of bf16 or fp16 (HALF), two to a word; what is stored in fewer bits, as fp16; memory and the tensor cores.

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

__device__ __forceinline__ float power_of_2(float value) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(value));
    return out;
}

// Of fp16; what is no number stays none, so that it is found.
__device__ __forceinline__ float in_range(float value) {
    return value > HIGHEST ? HIGHEST : value < -HIGHEST ? -HIGHEST : value;
}

__device__ __forceinline__ u8 to_int8(float value) {
    return (u8)(signed char)fminf(fmaxf(rintf(value), -128.f), 127.f);
}

__device__ __forceinline__ uint4 load_once(const void* address) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
    return v;
}

// 16 bytes to shared memory, on their way until `arrived`: for the thread that sent for them alone.
__device__ __forceinline__ void send_for(void* to, const void* from) {
    u32 at = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(at), "l"(from) : "memory");
}

// All that was sent for since the last time, or nothing, is one group.
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until no more than the last GROUPS are on their way.
template <int GROUPS> __device__ __forceinline__ void arrived() {
    asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS) : "memory");
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

__device__ __forceinline__ u32 load_acquire(const u32* address) {
    u32 value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

// Bring a line of memory that nobody writes nearer.
__device__ __forceinline__ void near(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(address));
}

// A warp's 8 x 8 numbers of 16 bits the other way round: of row g, columns 2 c and 2 c + 1.
__device__ __forceinline__ u32 transposed(u32 pair) {
    u32 out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
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
