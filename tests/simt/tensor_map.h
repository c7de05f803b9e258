// What cuTensorMapEncodeTiled makes, as far as the emulator of tensor copies (tensor_copy.h) reads it: matrices, rows of which are
// copied in boxes. The fake driver and the runner of tapes fill it in.
#pragma once
#include <cstdint>

namespace simt {

struct alignas(128) TensorMap {
    static constexpr uint64_t MARK = 0x50414d2d524f534e;
    uint64_t mark;
    uint64_t address, columns, rows, pitch;  // pitch in bytes
    uint32_t box_columns, box_rows, element;  // element in bytes
    bool swizzled;                            // by 128 bytes
};
static_assert(sizeof(TensorMap) == 128, "a tensor map has 128 bytes");

// Fills a map in; what the driver refuses, in words (CUDA driver API, "Tensor Map Object Management").
inline const char* encode(TensorMap* to, const TensorMap& map) {
    auto above = [](uint64_t value, uint64_t most) { return value == 0 || value > most; };
    if (reinterpret_cast<uintptr_t>(to) % 128) return "a tensor map that is not aligned to 128 bytes";
    if (map.address % 16) return "a tensor whose address is not aligned to 16 bytes";
    if (above(map.columns, 1ull << 32) || above(map.rows, 1ull << 32)) return "a tensor of no or more than 2^32 elements along an axis";
    if (map.pitch % 16 || map.pitch >> 40) return "a stride that is no multiple of 16 bytes, or too large";
    if (map.pitch < map.columns * map.element) return "rows of a tensor that overlap";
    if (above(map.box_columns, 256) || above(map.box_rows, 256)) return "a box of no or more than 256 elements along an axis";
    if (map.box_columns * map.element % 16) return "rows of a box that are no multiple of 16 bytes";
    if (map.swizzled && map.box_columns * map.element > 128) return "rows of a box that are wider than the swizzle";
    *to = map;
    to->mark = TensorMap::MARK;
    return nullptr;
}

}  // namespace simt
