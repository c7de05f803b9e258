// Quantised matrices [rows, columns]: what their codes and scales stand for, eight elements of a row at a time.
//
// Codes and scales lie as `src/backend/blocks.rs` says: every row is whole blocks, those of GGUF begin at multiples of 4 bytes, most of
// 16, and numbers in half precision that would put them out of line lie apart. Values are made in f32 by the products and differences of
// `src/quantization/format.rs`, from the left, and have the same bits: where a difference may be one fused operation, its product is
// exact. They are rounded to what the library that wrote the matrix rounds to, and then to the compute dtype.

typedef unsigned char u8;

struct Quantized {
    const u8* codes;
    const void* scales;
    int columns;
    int shift;          // of NF4: a scale is that of 1 << shift elements
    float step;         // of int8 codes: what the product with the scale of the row is multiplied by
    const float* nf4;   // what the 16 codes of NF4 stand for, in shared memory
};

// Numbers of the `format` of a launch, in the order of `BlockLayout::number`.
enum { INT8_ROWS, NF4, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K };
// Numbers of its `rounding`.
enum { ROUNDED_BF16 = 1, ROUNDED_F16 = 2 };

// The values of NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
DEV float nf4_value(int code) {
    const float values[16] = {-1.0f,         -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                              -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                              0.44070983f,   0.562617f,    0.72295684f,  1.0f};
    return values[code];
}
// Makes the table of those values, by the whole block.
DEV void fill_nf4(float* table, int format) {
    if (format != NF4) return;
    if (threadIdx.x < 16) table[threadIdx.x] = nf4_value(threadIdx.x);
    __syncthreads();
}

// A whole number below 2^23, less `offset`: both exact.
DEV float number(u32 code, float offset = 0.0f) { return __uint_as_float(0x4b000000u | code) - (8388608.0f + offset); }
DEV float signed_number(u32 code) { return number(code ^ 128, 128.0f); }
DEV u32 byte_of(uint2 bytes, int i) { return (i < 4 ? bytes.x : bytes.y) >> 8 * (i % 4) & 255; }
DEV u32 four_bytes(const u8* p) { return *reinterpret_cast<const u32*>(p); }
DEV uint2 eight_bytes(const u8* p) { return *reinterpret_cast<const uint2*>(p); }
// The same where only four are aligned.
DEV uint2 two_words(const u8* p) { return make_uint2(four_bytes(p), four_bytes(p + 4)); }
DEV float half_at(const void* halves, i64 i) { return widen(reinterpret_cast<const half*>(halves)[i]); }

// Each format's v = elements c, ..., c + 7 of a row, c a multiple of 8; behind the end of the row there may be anything.

struct Int8Rows {
    static DEV void decode(float (&v)[8], const Quantized& m, int row, int c) {
        const u8* codes = m.codes + (i64)row * m.columns + c;
        float scale = reinterpret_cast<const float*>(m.scales)[row];
        uint2 bytes = {};
        if (m.columns % 8 == 0) {
            bytes = eight_bytes(codes);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (c + i < m.columns) (i < 4 ? bytes.x : bytes.y) |= (u32)codes[i] << 8 * (i % 4);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = signed_number(byte_of(bytes, i)) * scale * m.step;
    }
};

struct Nf4 {
    static DEV void decode(float (&v)[8], const Quantized& m, int row, int c) {
        int bytes = (m.columns + 1) / 2;
        const u8* at = m.codes + (i64)row * bytes + c / 2;
        u32 codes = 0;
        if (m.columns % 8 == 0) {
            codes = four_bytes(at);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (c / 2 + i < bytes) codes |= (u32)at[i] << 8 * i;
        }
        const float* scales = reinterpret_cast<const float*>(m.scales) + (i64)row * (m.columns >> m.shift);
        // One scale of all eight, or of each.
        float scale = m.shift < 3 ? 0.0f : scales[c >> m.shift];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (m.shift < 3) scale = c + i < m.columns ? scales[(c + i) >> m.shift] : 0.0f;
            // The first of a byte is its high half.
            v[i] = m.nf4[codes >> (4 * i ^ 4) & 15] * scale;
        }
    }
};

struct Q8x0 {
    static DEV void decode(float (&v)[8], const Quantized& m, int row, int c) {
        i64 at = (i64)row * m.columns + c;
        float d = half_at(m.scales, at / 32);
        uint2 bytes = eight_bytes(m.codes + at);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = signed_number(byte_of(bytes, i)) * d;
    }
};

// Blocks of 32 codes of 4 bits, or of 5, of which the fifth ones stand before the others; with a minimum, or centred.
template <int bits, bool minimum>
struct Small {
    static DEV void decode(float (&v)[8], const Quantized& m, int row, int c) {
        i64 index = ((i64)row * m.columns + c) / 32;
        const u8* block = m.codes + index * (bits == 5 ? 20 : 16);
        float d = half_at(m.scales, minimum ? 2 * index : index), least = 0.0f;
        if (minimum) least = half_at(m.scales, 2 * index + 1);
        uint2 bytes = bits == 5 ? two_words(block + 4 + c % 16) : eight_bytes(block + c % 16);
        u32 fifths = bits == 5 ? four_bytes(block) >> c % 32 : 0;
        int shift = c % 32 / 16 * 4;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 code = (byte_of(bytes, i) >> shift & 15) | (fifths >> i & 1) << 4;
            v[i] = minimum ? d * number(code) + least : d * number(code, bits == 5 ? 16.0f : 8.0f);
        }
    }
};

// 16 bytes with the scale and above it the minimum of each part of 16 elements, then codes of 2 bits: of each half of 128 elements four
// times 32 in 32 bytes.
struct Q2xK {
    static DEV void decode(float (&v)[8], const Quantized& m, int row, int c) {
        i64 index = ((i64)row * m.columns + c) / 256;
        const u8* block = m.codes + index * 80;
        u32 both = block[c % 256 / 16];
        float factor = half_at(m.scales, 2 * index) * number(both & 15);
        float off = half_at(m.scales, 2 * index + 1) * number(both >> 4);
        uint2 bytes = eight_bytes(block + 16 + c % 256 / 128 * 32 + c % 32);
        int shift = c % 128 / 32 * 2;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = factor * number(byte_of(bytes, i) >> shift & 3) - off;
    }
};

// 32 bytes whose bit p is the third, turned around, of elements 32 p and on, codes as in Q2_K, and the 16 scales of 6 bits in 12 bytes,
// the low four of all first.
struct Q3xK {
    static DEV void decode(float (&v)[8], const Quantized& m, int row, int c) {
        i64 index = ((i64)row * m.columns + c) / 256;
        const u8* block = m.codes + index * 108;
        const u8* scales = block + 96;
        int part = c % 256 / 16;
        u32 low = scales[part % 8] >> part / 8 * 4 & 15, high = scales[8 + part % 4] >> part / 4 * 2 & 3;
        float factor = half_at(m.scales, index) * number(low | high << 4, 32.0f);
        uint2 thirds = two_words(block + c % 32), bytes = two_words(block + 32 + c % 256 / 128 * 32 + c % 32);
        int shift = c % 128 / 32 * 2;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 code = (byte_of(bytes, i) >> shift & 3) | (byte_of(thirds, i) >> part / 2 & 1) << 2;
            v[i] = factor * number(code, 4.0f);
        }
    }
};

// The blocks of Q4_K (144 bytes) and Q5_K (176): two scales in half precision, 12 bytes with a scale and a minimum of 6 bits for
// each of 8 parts, of Q5_K 32 bytes of fifth bits, then the codes of two parts in the halves of 32 bytes, and so on.
template <int block_bytes>
struct Parts {
    static DEV void decode(float (&v)[8], const Quantized& m, int row, int c) {
        const bool fifths = block_bytes == 176;
        const u8* block = m.codes + ((i64)row * m.columns + c) / 256 * block_bytes;
        uint4 head = *reinterpret_cast<const uint4*>(block);
        int part = c % 256 / 32, at = part % 4 * 8;
        u32 scale = head.y >> at & 255, minimum = head.z >> at & 255, both = head.w >> at & 255;
        u32 s = part < 4 ? scale & 63 : (both & 15) | (scale >> 2 & 48);
        u32 least = part < 4 ? minimum & 63 : both >> 4 | (minimum >> 2 & 48);
        float factor = widen(half{(u16)head.x}) * number(s), off = widen(half{(u16)(head.x >> 16)}) * number(least);
        uint2 bytes = eight_bytes(block + (fifths ? 48 : 16) + part / 2 * 32 + c % 32);
        uint2 fifth = {};
        if (fifths) fifth = eight_bytes(block + 16 + c % 32);
        int shift = part % 2 * 4;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 code = byte_of(bytes, i) >> shift & 15;
            if (fifths) code |= (byte_of(fifth, i) >> part & 1) << 4;
            v[i] = factor * number(code) - off;
        }
    }
};

// Of each half of 128 elements 64 bytes with the low 4 bits, then of each half 32 bytes with the high 2, then 16 scales.
struct Q6xK {
    static DEV void decode(float (&v)[8], const Quantized& m, int row, int c) {
        i64 index = ((i64)row * m.columns + c) / 256;
        const u8* block = m.codes + index * 208;
        int half_of = c % 256 / 128, quarter = c % 128 / 32, in_quarter = c % 32;
        uint2 low = eight_bytes(block + 64 * half_of + 32 * (quarter % 2) + in_quarter);
        uint2 high = eight_bytes(block + 128 + 32 * half_of + in_quarter);
        float factor = half_at(m.scales, index) * signed_number(block[192 + 8 * half_of + 2 * quarter + in_quarter / 16]);
        int shift = quarter / 2 * 4, shift_high = quarter * 2;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 code = (byte_of(low, i) >> shift & 15) | (byte_of(high, i) >> shift_high & 3) << 4;
            v[i] = factor * number(code, 32.0f);
        }
    }
};

// body(the type of a format).
template <class Body>
DEV void with_format(int format, Body body) {
    switch (format) {
        case INT8_ROWS: return body(Int8Rows());
        case NF4: return body(Nf4());
        case Q8_0: return body(Q8x0());
        case Q4_0: return body(Small<4, false>());
        case Q4_1: return body(Small<4, true>());
        case Q5_0: return body(Small<5, false>());
        case Q5_1: return body(Small<5, true>());
        case Q2_K: return body(Q2xK());
        case Q3_K: return body(Q3xK());
        case Q4_K: return body(Parts<144>());
        case Q5_K: return body(Parts<176>());
        default: return body(Q6xK());
    }
}

template <class T>
DEV void round_all(float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        T narrowed;
        narrow(narrowed, v[i]);
        v[i] = widen(narrowed);
    }
}
// v = elements c, ..., c + 7 of a row in the compute dtype.
template <class Format>
DEV void decode(Format, float (&v)[8], const Quantized& m, int row, int c, int rounding) {
    Format::decode(v, m, row, c);
    if (rounding == ROUNDED_BF16) round_all<bf16>(v);
    if (rounding == ROUNDED_F16) round_all<half>(v);
    round_all<real>(v);
}
