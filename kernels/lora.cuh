// What lora.cu is made of: dropout, and factors of f32 on the tensor cores.
//
// Adapters and what they make are f32, whatever the compute dtype, as in PEFT: a factor is taken apart into its
// bf16 value, that of the rest, and that of the rest's rest (a bf16 value is one such term, a half value two), and
// products of terms that matter in f32 are made on the tensor cores.

// Terms that the compute dtype is the sum of.
template <class T>
struct Terms {
    static constexpr int count = 1;
};
template <>
struct Terms<half> {
    static constexpr int count = 2;
};
template <>
struct Terms<float> {
    static constexpr int count = 3;
};
constexpr int TERMS = Terms<real>::count, TERMS_F32 = Terms<float>::count;

template <int terms, class Fragment>
DEV void set_terms(Fragment (&f)[terms], int pair, float a, float b) {
#pragma unroll
    for (int i = 0; i < terms; i++) {
        float low, high;
        f[i].pair[pair] = pack(a, b, bf16());
        // What the next terms are made of.
        unpack(low, high, f[i].pair[pair], bf16());
        a -= low, b -= high;
    }
}
DEV void set_b(FragmentB<bf16> (&f)[TERMS_F32], const float (&v)[4]) {
    set_terms(f, 0, v[0], v[1]), set_terms(f, 1, v[2], v[3]);
}
// Of rows g and g + 8.
template <int terms>
DEV void set_a(FragmentA<bf16> (&f)[terms], const float (&top)[4], const float (&bottom)[4]) {
    set_terms(f, 0, top[0], top[1]), set_terms(f, 1, bottom[0], bottom[1]);
    set_terms(f, 2, top[2], top[3]), set_terms(f, 3, bottom[2], bottom[3]);
}
template <int terms>
DEV void multiply(float (&c)[4], const FragmentA<bf16> (&a)[terms], const FragmentB<bf16> (&b)[TERMS_F32]) {
#pragma unroll
    for (int i = 0; i < terms; i++)
#pragma unroll
        for (int j = 0; i + j < TERMS_F32; j++) mma(c, a[i], b[j]);
}

// The first `valid` of four neighbours, then zeros, wherever they lie.
template <class T>
DEV Four<T> load_four(const T* p, int valid) {
    u32 word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) word[i] = i < valid ? p[i].bits : 0;
    return {make_uint2(word[0] | word[1] << 16, word[2] | word[3] << 16)};
}
DEV Four<float> load_four(const float* p, int valid) {
    float v[4];
    load4(v, p, valid);
    return {make_float4(v[0], v[1], v[2], v[3])};
}

DEV u64 mix(u64 x) {
    // The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Of the LoRAs of a launch, that of number i.
template <class T>
DEV T pick(int i, T first, T second, T third) {
    return i == 0 ? first : i == 1 ? second : third;
}

struct Dropout {
    const u64* seeds;
    const u32* keys;
    u64 site;
    u32 threshold;
};

// What the dropout of a row is drawn from.
DEV u64 hash_of(const Dropout& dropout, int run, int row) {
    return mix(mix(mix(dropout.seeds[run]) ^ dropout.site) ^ dropout.keys[row]);
}
// Zeros what the dropout of a row drops among its columns from `column` (even) on.
template <int n>
DEV void drop(float (&v)[n], const Dropout& dropout, u64 hash, int column) {
#pragma unroll
    for (int i = 0; i < n; i += 2) {
        u64 draw = mix(hash + (u64)((column + i) / 2) * 0x9e3779b97f4a7c15ull);
        if ((u32)draw < dropout.threshold) v[i] = 0.0f;
        if ((u32)(draw >> 32) < dropout.threshold) v[i + 1] = 0.0f;
    }
}
