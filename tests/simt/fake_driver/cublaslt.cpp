// libcublasLt.so.13 for tests: dense column-major products with a bias, as the backend asks for them.
// FAKE_ALGORITHMS=<milliseconds>[:<bytes>],... are the algorithms that the heuristic offers, in this order: how long a product takes by each,
// on a device whose clock moves with products alone, and how much workspace it needs. All compute the same. Without it there is one.
#include "fake.h"

enum { OK = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { TRANSA = 3, TRANSB = 4, EPILOGUE = 7, BIAS_POINTER = 8 };
enum { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };

enum { BATCH_COUNT = 5, STRIDED_BATCH_OFFSET = 6 };
enum { MAX_WORKSPACE_BYTES = 1, REDUCTION_SCHEME_MASK = 3 };
enum { REDUCTION_SCHEME_COMPUTE_TYPE = 2 };
enum { CONFIG_ID = 0 };

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
    int count = 1;
    int64_t apart = 0;
};
struct Description {
    int transpose_a = 0, transpose_b = 0, epilogue = EPILOGUE_DEFAULT;
    Address bias = 0;
};
struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

static int handle_object;
static const uint64_t MARK = 0x6c6f6769;

struct Preference {
    uint64_t workspace = 0;
    uint32_t reduction = 7;
};
struct Algorithm {
    double milliseconds;
    size_t workspace;
};

static const std::vector<Algorithm>& algorithms() {
    static const std::vector<Algorithm> all = [] {
        std::vector<Algorithm> all;
        const char* text = getenv("FAKE_ALGORITHMS");
        for (char* at = const_cast<char*>(text ? text : "0"); *at; at += *at == ',') {
            Algorithm one{strtod(at, &at), 0};
            if (*at == ':') one.workspace = strtoull(at + 1, &at, 10);
            all.push_back(one);
        }
        return all;
    }();
    return all;
}

static bool known(const uint64_t* algorithm) { return algorithm[0] == MARK && algorithm[1] < algorithms().size(); }

static size_t size_of(int type) { return type == R_32F ? 4 : 2; }

static float load(int type, Address at, int64_t i) {
    if (type == R_32F) return reinterpret_cast<float*>(at)[i];
    uint16_t bits = reinterpret_cast<uint16_t*>(at)[i];
    if (type == R_16F) {
        _Float16 x;
        memcpy(&x, &bits, 2);
        return x;
    }
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

static void store(int type, Address at, int64_t i, float x) {
    if (type == R_32F) {
        reinterpret_cast<float*>(at)[i] = x;
    } else if (type == R_16F) {
        _Float16 y = x;
        memcpy(reinterpret_cast<uint16_t*>(at) + i, &y, 2);
    } else {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        reinterpret_cast<uint16_t*>(at)[i] = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
}

static void check(const Layout& layout, Address at) {
    size_t bytes = ((layout.columns - 1) * layout.stride + layout.rows) * size_of(layout.type);
    for (int i = 0; i < layout.count; i++) {
        Address one = at + i * layout.apart * size_of(layout.type);
        if (!device_owns(one, bytes)) wrong("a product's operand lies outside of an allocation");
    }
}

API cublasLtCreate(void** handle) {
    *handle = &handle_object;
    return OK;
}
API cublasLtDestroy(void*) { return OK; }
API cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    if (stride < (int64_t)rows || !rows || !columns) return INVALID_VALUE;
    *layout = new Layout{type, rows, columns, stride};
    return OK;
}
API cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return OK;
}
API cublasLtMatrixLayoutSetAttribute(void* handle, int attribute, const void* value, size_t size) {
    Layout* layout = static_cast<Layout*>(handle);
    if (attribute == BATCH_COUNT && size == 4) {
        layout->count = *static_cast<const int*>(value);
    } else if (attribute == STRIDED_BATCH_OFFSET && size == 8) {
        layout->apart = *static_cast<const int64_t*>(value);
    } else {
        return INVALID_VALUE;
    }
    return layout->count > 0 && layout->apart >= 0 ? OK : INVALID_VALUE;
}
API cublasLtMatmulDescCreate(void** description, int compute, int scale) {
    if (compute != 68 || scale != R_32F) return NOT_SUPPORTED;  // accumulation in f32 only
    *description = new Description;
    return OK;
}
API cublasLtMatmulDescDestroy(void* description) {
    delete static_cast<Description*>(description);
    return OK;
}
API cublasLtMatmulDescSetAttribute(void* handle, int attribute, const void* value, size_t size) {
    Description* description = static_cast<Description*>(handle);
    if (size != (attribute == BIAS_POINTER ? 8 : 4)) return INVALID_VALUE;
    int number = *static_cast<const int*>(value);
    switch (attribute) {
        case TRANSA: description->transpose_a = number; break;
        case TRANSB: description->transpose_b = number; break;
        case EPILOGUE: description->epilogue = number; break;
        case BIAS_POINTER: description->bias = *static_cast<const Address*>(value); break;
        default: return INVALID_VALUE;
    }
    return description->epilogue == EPILOGUE_DEFAULT || description->epilogue == EPILOGUE_BIAS ? OK : NOT_SUPPORTED;
}
API cublasLtMatmulPreferenceCreate(void** preference) {
    *preference = new Preference;
    return OK;
}
API cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<Preference*>(preference);
    return OK;
}
API cublasLtMatmulPreferenceSetAttribute(void* handle, int attribute, const void* value, size_t size) {
    Preference* preference = static_cast<Preference*>(handle);
    if (size != (attribute == MAX_WORKSPACE_BYTES ? 8 : 4)) return INVALID_VALUE;
    if (attribute == MAX_WORKSPACE_BYTES) preference->workspace = *static_cast<const uint64_t*>(value);
    if (attribute == REDUCTION_SCHEME_MASK) preference->reduction = *static_cast<const uint32_t*>(value);
    return OK;
}
API cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void* handle, int most, Heuristic* found, int* count) {
    Preference* preference = static_cast<Preference*>(handle);
    if (preference->reduction != REDUCTION_SCHEME_COMPUTE_TYPE) wrong("a product may be summed in the order in which parts come");
    *count = 0;
    for (const Algorithm& algorithm : algorithms()) {
        if (*count == most || algorithm.workspace > preference->workspace) continue;
        Heuristic* one = found + (*count)++;
        *one = Heuristic();
        one->algorithm[0] = MARK, one->algorithm[1] = &algorithm - algorithms().data();
        one->workspace = algorithm.workspace;
    }
    return *count ? OK : NOT_SUPPORTED;
}
API cublasLtMatmulAlgoCheck(void*, void*, void*, void*, void*, void*, const uint64_t* algorithm, Heuristic* found) {
    if (!known(algorithm)) return INVALID_VALUE;
    found->workspace = algorithms()[algorithm[1]].workspace, found->state = OK, found->waves = 0;
    return OK;
}
API cublasLtMatmulAlgoConfigGetAttribute(const uint64_t* algorithm, int attribute, void* value, size_t size, size_t* written) {
    if (!known(algorithm) || size != 4) return INVALID_VALUE;
    *static_cast<uint32_t*>(value) = attribute == CONFIG_ID ? algorithm[1] : 1;
    *written = 4;
    return OK;
}
extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return 130401; }
API cublasLtMatmul(void*, void* description, const float* alpha, Address a, void* layout_a, Address b, void* layout_b,
                   const float* beta, Address c, void* layout_c, Address d, void* layout_d, const uint64_t* algorithm,
                   void* workspace, size_t workspace_size, void* stream) {
    Description of = *static_cast<Description*>(description);
    Layout la = *static_cast<Layout*>(layout_a), lb = *static_cast<Layout*>(layout_b);
    Layout lc = *static_cast<Layout*>(layout_c), ld = *static_cast<Layout*>(layout_d);
    float scale = *alpha, keep = *beta;
    uint64_t m = of.transpose_a ? la.columns : la.rows, k = of.transpose_a ? la.rows : la.columns;
    uint64_t n = of.transpose_b ? lb.rows : lb.columns, inner = of.transpose_b ? lb.columns : lb.rows;
    if (k != inner || m != ld.rows || n != ld.columns || lc.rows != m || lc.columns != n) return INVALID_VALUE;
    if (la.count != ld.count || lb.count != ld.count || lc.count != ld.count) return INVALID_VALUE;
    if (!known(algorithm) || algorithms()[algorithm[1]].workspace > workspace_size) return INVALID_VALUE;
    if (la.type != lb.type || lc.type != ld.type) return INVALID_VALUE;
    if (!device_owns(reinterpret_cast<Address>(workspace), workspace_size)) return INVALID_VALUE;
    check(la, a), check(lb, b), check(lc, c), check(ld, d);
    auto multiply = [=](Address a, Address b, Address c, Address d) {
        std::vector<float> sums(m);
        for (uint64_t j = 0; j < n; j++) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (uint64_t q = 0; q < k; q++) {
                float right = load(lb.type, b, of.transpose_b ? j + q * lb.stride : q + j * lb.stride);
                for (uint64_t i = 0; i < m; i++) {
                    sums[i] += right * load(la.type, a, of.transpose_a ? q + i * la.stride : i + q * la.stride);
                }
            }
            for (uint64_t i = 0; i < m; i++) {
                float x = scale * sums[i];
                if (keep != 0) x += keep * load(lc.type, c, i + j * lc.stride);
                if (of.epilogue == EPILOGUE_BIAS) x += load(ld.type, of.bias, i);
                store(ld.type, d, i + j * ld.stride, x);
            }
        }
    };
    uint64_t number = algorithm[1];
    return enqueue(stream, [=] {
        count_product(number, algorithms()[number].milliseconds);
        auto at = [](Address first, const Layout& layout, int i) { return first + i * layout.apart * size_of(layout.type); };
        for (int i = 0; i < ld.count; i++) multiply(at(a, la, i), at(b, lb, i), at(c, lc, i), at(d, ld, i));
    });
}
