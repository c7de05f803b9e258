// Copies of boxes of a matrix to shared memory (PTX ISA: cp.async.bulk.tensor, "Tensors", "Async proxy"): included by simt.h.
//
// Such a copy belongs to no thread. It lands at once (SIMT_ASYNC=early), when no thread can go on (late), or under random orders at any
// time before; where several are under way, the oldest, the youngest or any of them is the next. Only then is the matrix read, and the
// barrier told of the bytes: all of the box, of which those outside of the matrix are zeros. Mistakes that end the process, beside what
// the driver refuses to encode (tensor_map.h) and what hopper.h says of barriers and products:
//   a place in shared memory that is not aligned to 128 bytes, or not wholly inside
//   a barrier, or a place that a thread's copy has written, where neither the thread that wrote nor the one that copies has made it
//     visible since (fence.proxy.async); plain stores are not followed
//   a product that reads a place to which a copy is under way, or what one brought before a thread of the warp itself has waited for
//     that phase of the barrier
//   copies under way, or barriers that other bytes were announced to than came, when the block ends
#pragma once

namespace simt {

inline unsigned bytes_of(const TensorMap& map) { return map.box_columns * map.box_rows * map.element; }

inline void land(const TensorCopy& copy) {
    const TensorMap& map = copy.map;
    uint32_t start = shared_address(copy.to), width = map.box_columns * map.element;
    for (uint32_t at = 0; at < bytes_of(map); at += map.element) {
        int64_t row = copy.row + int64_t(at / width), column = copy.column + int64_t(at % width / map.element);
        uint32_t to = start + at;
        if (map.swizzled) to ^= (to >> 7 & 7) << 4;
        bool inside = row >= 0 && row < int64_t(map.rows) && column >= 0 && column < int64_t(map.columns);
        const char* from = reinterpret_cast<const char*>(map.address) + (inside ? row * map.pitch + column * map.element : 0);
        unsigned char* place = scheduler().shared + to;
        inside ? memcpy(place, from, map.element) : memset(place, 0, map.element);
    }
    for (uint32_t part = start / 16; part < (start + bytes_of(map)) / 16; part++) {
        the_hopper.written[part] = {};
        the_hopper.brought[part] = {copy.barrier, the_hopper.barriers[copy.barrier].phases};
        the_hopper.incoming[part]--;
    }
    mbarrier(copy.barrier).bytes -= bytes_of(map);
    complete(copy.barrier);
}

inline bool land_one(bool by_choice) {
    std::vector<TensorCopy>& copies = the_hopper.copies;
    const Scheduler& s = scheduler();
    if (copies.empty() || (by_choice && (s.order != 2 || next_random() % 4))) return false;
    size_t i = s.order == 0 ? 0 : s.order == 1 ? copies.size() - 1 : next_random() % copies.size();
    TensorCopy copy = copies[i];
    copies.erase(copies.begin() + i);
    land(copy);
    return true;
}

inline void copy_box(void* to, const void* map, int column, int row, unsigned long long* barrier) {
    must_have_begun();
    sanitize::Quiet quiet;
    TensorCopy copy{{}, to, column, row, barrier};
    memcpy(&copy.map, map, sizeof copy.map);
    if (copy.map.mark != TensorMap::MARK) fail("a tensor copy by what is no tensor map");
    uint32_t start = shared_address(to), end = start + bytes_of(copy.map);
    if (start % 128) fail("a tensor copy to a place that is not aligned to 128 bytes");
    if (end > scheduler().shared_size) fail("a tensor copy beyond shared memory");
    if (copy.map.swizzled && copy.map.box_columns * copy.map.element != 128) fail("a swizzled box of less than 128 bytes across");
    const uint64_t* visible = the_hopper.visible.data();
    auto seen = [&](Written written) { return std::max(visible[written.by], visible[self().index]) >= written.when; };
    mbarrier(barrier);
    if (!seen(the_hopper.barriers[barrier].initialised)) fail("a tensor copy with a barrier that was initialised without fence.proxy.async since");
    for (uint32_t part = start / 16; part < end / 16; part++) {
        if (!seen(the_hopper.written[part])) fail("a tensor copy over what a copy wrote without fence.proxy.async in between");
        the_hopper.incoming[part]++;
    }
    sanitize::release(barrier);
    the_hopper.copies.push_back(copy);
    if (scheduler().early) land_one(false);
}

inline void tensor_copies_finish() {
    if (!the_hopper.copies.empty()) fail("a block ends while tensor copies are under way");
    for (const auto& [at, initialised] : the_hopper.barriers)
        if (mbarrier(at).bytes) fail("other bytes were announced to a barrier in shared memory than came");
}

}  // namespace simt
