// Runs launches that a test wrote down. Include after SIMT_KERNELS.
//
//   runner <case file> <result file>
//
// A case file (numbers are little-endian u64): the number of buffers, for each its bytes' count and the bytes; the
// number of launches, for each the length of the kernel's name and the name, grid x y z, block x y z, bytes of
// dynamic shared memory, the number of arguments, and each argument as a kind and a value: kind 0 a null pointer,
// kind 1 a pointer into buffer `value >> 32` at byte `value & 0xffffffff`, kind 4 or 8 a number of that many bytes,
// kind 2 boxes of a matrix of elements of two bytes in buffer `value`, before a number that says rows (from bit 32 on) and columns.
// The result is all buffers, one after another. Every buffer is an allocation of its exact size, so that
// AddressSanitizer sees its ends.
#pragma once
#include <deque>

namespace simt {

struct Reader {
    FILE* file;
    uint64_t number() {
        uint64_t value;
        bytes(&value, sizeof value);
        return value;
    }
    void bytes(void* to, size_t count) {
        if (count && fread(to, 1, count, file) != count) fail("the case file ends early");
    }
};

// Boxes of 64 columns (Boxes of kernels/attention_hopper.cuh).
inline void encode_boxes(TensorMap (&maps)[3], char* matrix, uint64_t shape) {
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t columns = shape & 0xffffffff;
        TensorMap map{0, uint64_t(matrix), columns, shape >> 32, 2 * columns, 64, 64u >> 3 * i, 2, true};
#ifdef PLANT_SWIZZLE
        map.swizzled = false;
#endif
        if (const char* refused = encode(&maps[i], map)) fail(refused);
    }
}

inline int run_cases(const char* from, const char* to) {
    Reader in{fopen(from, "rb")};
    if (!in.file) fail("no case file");
    std::vector<std::pair<char*, size_t>> buffers(in.number());
    for (auto& [data, size] : buffers) {
        size = in.number();
        void* memory = nullptr;
        if (posix_memalign(&memory, 256, size)) fail("no memory");
        data = static_cast<char*>(memory);
        in.bytes(data, size);
#ifdef SIMT_ACCESSES
        accesses_buffer(data, size);
#endif
    }
    for (uint64_t launches = in.number(); launches; launches--) {
        std::string name(in.number(), ' ');
        in.bytes(name.data(), name.size());
        const SimtKernel* kernel = simt_find(name.c_str());
        if (!kernel) fail(("no kernel " + name).c_str());
        unsigned size[6];
        for (unsigned& n : size) n = in.number();
        size_t shared = in.number();
        std::vector<uint64_t> values(in.number());
        std::vector<void*> arguments;
        struct Boxes {
            TensorMap maps[3];
        };
        std::deque<Boxes> boxes;
        if (values.size() != size_t(kernel->arguments)) fail(("wrong number of arguments for " + name).c_str());
        for (size_t i = 0; i < values.size(); i++) {
            uint64_t kind = in.number(), value = in.number();
            if (kernel->sizes[i] != (kind == 2 ? sizeof(Boxes) : kind < 4 ? sizeof(void*) : kind)) {
                fail((name + ": wrong size of argument " + std::to_string(i)).c_str());
            }
            if (kind == 1) value = uint64_t(buffers.at(value >> 32).first + (value & 0xffffffff));
            if (kind == 2) value = uint64_t(buffers.at(value).first);
            values[i] = value;
            if (kind == 2) encode_boxes(boxes.emplace_back().maps, reinterpret_cast<char*>(value), in.number());
            arguments.push_back(kind == 2 ? static_cast<void*>(&boxes.back()) : &values[i]);
        }
#ifdef SIMT_ACCESSES
        accesses_begin(kernel->name, values.data(), values.size());
#endif
        kernel->launch(arguments.data(), dim3(size[0], size[1], size[2]), dim3(size[3], size[4], size[5]), shared);
    }
#ifdef SIMT_ACCESSES
    accesses_report();
#endif
    fclose(in.file);
    FILE* out = fopen(to, "wb");
    if (!out) fail("no result file");
    for (auto& [data, size] : buffers) fwrite(data, 1, size, out);
    return fclose(out);
}

}  // namespace simt

int main(int count, char** names) {
    if (count != 3) return 2;
    return simt::run_cases(names[1], names[2]);
}
