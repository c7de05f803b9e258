// What compute capability 9.0 adds (PTX ISA: mbarrier, wgmma, "Async proxy", setmaxnreg): included by simt.h.
//
// Barriers in shared memory have phases: who waits for one that is over goes on, who waits for the one that runs is woken by its last
// arrival, or by the last of the bytes that arrivals have announced (tensor_copy.h). Products of a warpgroup are asynchronous: each
// warp has its 16 rows of the 64. When such a product reads shared memory is the schedule's choice: when it is issued (SIMT_ASYNC=late,
// where copies that are waited for land when no other thread can run), when it is waited for and no other thread can run (early, where
// copies land at once), or under random orders either. After an arrival other
// threads run first. What a product adds up is poison in the registers until it has been waited for. Mistakes that end the process:
//   a barrier used before it is initialised
//   a product that reads what a copy wrote, where neither the copying nor the multiplying thread made it visible to products since
//     (fence.proxy.async); plain stores are not followed
//   a product without a wgmma.fence since its warp last waited for products, or at all
//   registers of a sum or a left factor changed while a product is under way
//   matrices that are not swizzled by 128 bytes or lie outside of shared memory; products never waited for
//   register counts that are no multiple of 8 from 24 to 256, that grow where they are said to shrink, or differ in a warpgroup; more
//     registers than others gave away are waited for, in the end as a deadlock
#pragma once

namespace simt {

inline uint32_t shared_address(const void* p) { return static_cast<const unsigned char*>(p) - the_scheduler.shared; }

// A product as one lane gives it: its sums, its part of the left factor, and what all lanes have in common.
struct Product {
    float* sums;
    unsigned count;
    const uint32_t* left;
    uint64_t matrix;
    bool add, by_rows;
    float (*value)(uint16_t bits);
};

// A product of a warp that has been issued.
struct Issued {
    Product lanes[LANES];
    uint32_t left[LANES][4];
    bool done;
};

// Sums of a warp that products add to, with what stands there in truth.
struct Sums {
    float* lanes[LANES];
    unsigned count;
    std::vector<float> values[LANES];
};

struct HopperWarp {
    std::vector<Issued> open;                 // not committed
    std::vector<std::vector<Issued>> groups;  // oldest first
    std::vector<Sums> sums;
    unsigned registers = 0;
    bool fenced = false;
};

struct Written {
    uint64_t when = 0;
    unsigned by = 0;
};

// What a tensor copy has brought, as part of a phase of a barrier, counted from 0.
struct Brought {
    unsigned long long* barrier = nullptr;
    uint64_t phase = 0;
};

// What is known of a barrier in shared memory beside its bits.
struct Barrier {
    Written initialised;
    uint64_t phases = 0;           // that are over
    std::vector<uint64_t> waited;  // how many of them, for each thread that knows of any
};

// A copy of a box of a matrix that has not landed.
struct TensorCopy {
    TensorMap map;
    void* to;
    int column, row;
    unsigned long long* barrier;
};

struct Hopper {
    std::vector<HopperWarp> warps;
    std::vector<Written> written;    // by 16 bytes of dynamic shared memory, by copies of threads
    std::vector<Brought> brought;    // by the same, by tensor copies
    std::vector<unsigned> incoming;  // by the same, tensor copies under way
    std::vector<TensorCopy> copies;  // these, oldest first
    std::vector<uint64_t> visible;   // until when each thread has made writes visible to products and tensor copies
    std::map<unsigned long long*, Barrier> barriers;
    uint64_t clock = 0;
    unsigned free_registers = 0;     // that warps have given away, for a thread of theirs
};

inline Hopper the_hopper;
constexpr uint32_t POISON = 0x7fc0dead;
constexpr unsigned REGISTERS = 65536, WARPGROUP = 4;

inline void hopper_begin() {
    const Scheduler& s = scheduler();
    the_hopper = Hopper();
    the_hopper.warps.resize(s.warps.size());
    the_hopper.written.resize(s.shared_size / 16);
    the_hopper.brought.resize(s.shared_size / 16);
    the_hopper.incoming.resize(s.shared_size / 16);
    the_hopper.visible.resize(s.threads);
    unsigned each = std::min(REGISTERS / s.threads / 8 * 8, 255u);
    for (HopperWarp& warp : the_hopper.warps) warp.registers = each;
}

// Of tensor_copy.h: what may not be left when a block ends.
void tensor_copies_finish();

inline void hopper_finish() {
    const HopperWarp& warp = the_hopper.warps[self().warp];
    if (!warp.open.empty() || !warp.groups.empty()) fail("a thread returns with products not waited for");
    if (scheduler().live) return;
    tensor_copies_finish();
    const std::vector<HopperWarp>& warps = the_hopper.warps;
    for (size_t i = 0; i < warps.size(); i++)
        if (warps[i].registers != warps[i / WARPGROUP * WARPGROUP].registers) {
            fail("warps of one warpgroup ask for different numbers of registers");
        }
}

// Lets other threads run first, where any can.
inline void yield() {
    Fiber* next = pick();
    if (!next) return;
    Scheduler& s = scheduler();
    self().state = State::Ready;
    s.ready.insert(s.order == 1 ? s.ready.begin() : s.ready.end(), self().index);
    switch_to(next);
}

// Lets all other threads run as far as they can.
inline void delay(const char* where) {
    scheduler().delayed.push_back(self().index);
    wait(State::AtAsync, where);
}

// Of a block that tells of copies by barriers: what a wait for copies begins with.
inline void before_landing() {
    sanitize::Quiet quiet;
    if (!the_hopper.barriers.empty() && !scheduler().early) delay("cp.async.wait_group");
}

// A copy has written 16 bytes.
inline void note_written(const void* to) {
    sanitize::Quiet quiet;
    size_t part = shared_address(to) / 16;
    if (part >= the_hopper.written.size()) return;
    the_hopper.written[part] = {++the_hopper.clock, self().index};
    the_hopper.brought[part] = {};
}

inline void fence_proxy_async() {
    sanitize::Quiet quiet;
    the_hopper.visible[self().index] = ++the_hopper.clock;
}

// ---- Barriers in shared memory

struct Mbarrier {
    uint64_t count : 20, pending : 20, phase : 3;
    int64_t bytes : 21;  // announced and not yet come
};
static_assert(sizeof(Mbarrier) == 8, "a barrier in shared memory has 8 bytes");

inline Mbarrier& mbarrier(unsigned long long* at) {
    Mbarrier& barrier = *reinterpret_cast<Mbarrier*>(at);
    if (barrier.count == 0xfffff) fail("a barrier in shared memory that is not initialised");
    return barrier;
}

inline void mbarrier_init(unsigned long long* at, int count) {
    {
        sanitize::Quiet quiet;
        the_hopper.barriers[at] = {{++the_hopper.clock, self().index}, 0, std::vector<uint64_t>(scheduler().threads)};
    }
    *reinterpret_cast<Mbarrier*>(at) = {unsigned(count), unsigned(count), 0, 0};
}

// Ends the phase of a barrier for which all has come.
inline void complete(unsigned long long* at) {
    Mbarrier& barrier = mbarrier(at);
    if (barrier.pending || barrier.bytes) return;
    barrier.phase++;
    barrier.pending = barrier.count;
    the_hopper.barriers[at].phases++;
    Scheduler& s = scheduler();
    for (unsigned i = 0; i < s.threads; i++)
        if (s.fibers[i].state == State::AtMbarrier && s.fibers[i].awaited == at) wake(i);
}

// An arrival, which announces so many bytes of tensor copies.
inline void mbarrier_arrive(unsigned long long* at, int bytes = 0) {
    sanitize::Quiet quiet;
    Mbarrier& barrier = mbarrier(at);
    sanitize::release(at);
    if (!barrier.pending) fail("more arrivals at a barrier in shared memory than it counts");
    barrier.pending--;
    barrier.bytes += bytes;
    complete(at);
    yield();
}

inline void mbarrier_wait(const char* where, unsigned long long* at, int phase) {
    sanitize::Quiet quiet;
    while (int(mbarrier(at).phase & 1) == phase) {
        self().awaited = at;
        wait(State::AtMbarrier, where);
    }
    Barrier& known = the_hopper.barriers[at];
    known.waited[self().index] = known.phases;
    sanitize::acquire(at);
}

// ---- Registers that warps give to others

inline void set_max_registers(const char* where, unsigned count, bool more) {
    sanitize::Quiet quiet;
    if (count % 8 || count < 24 || count > 256) fail("setmaxnreg: the count must be a multiple of 8 from 24 to 256");
    HopperWarp& warp = the_hopper.warps[self().warp];
    if (more ? count < warp.registers : count > warp.registers) fail("setmaxnreg: less by inc, or more by dec");
    sync_warp(where);
    if (!more) {
        if (self().lane == 0) {
            the_hopper.free_registers += warp.registers - count;
            warp.registers = count;
            Scheduler& s = scheduler();
            for (unsigned i = 0; i < s.threads; i++)
                if (s.fibers[i].state == State::AtRegisters) wake(i);
        }
    } else if (self().lane == 0) {
        while (the_hopper.free_registers < count - warp.registers) wait(State::AtRegisters, where);
        the_hopper.free_registers -= count - warp.registers;
        warp.registers = count;
    }
    sync_warp(where);
}

// ---- Products of warpgroups

// Eight neighbours of the right factor: row k, columns from n on, or (not by rows) column n, rows from k on. Strides are those of the
// canonical layouts with a swizzle of 128 bytes.
inline void read_eight(uint16_t (&eight)[8], const Product& product, unsigned k, unsigned n, unsigned warp) {
    uint64_t matrix = product.matrix;
    if (matrix >> 62 != 1) fail("wgmma: a matrix whose swizzle is not that of 128 bytes");
    if (matrix >> 49 & 7) fail("wgmma: a base offset");
    auto bytes = [&](int from) { return uint32_t(matrix >> from & 0x3fff) << 4; };
    uint32_t start = bytes(0), lead = bytes(16), stride = bytes(32), at;
    if (product.by_rows) {
        at = start + n / 64 * lead + n % 64 * 2 + k / 8 * stride + k % 8 * 128;
    } else {
        at = start + n / 8 * stride + n % 8 * 128 + k * 2;
    }
    at ^= (at >> 7 & 7) << 4;
    const Scheduler& s = scheduler();
    if (at + 16 > s.shared_size) fail("wgmma: a matrix beyond shared memory");
    if (the_hopper.incoming[at / 16]) fail("wgmma: reads a place to which a tensor copy is under way");
    Brought brought = the_hopper.brought[at / 16];
    if (brought.barrier) {
        const uint64_t* waited = the_hopper.barriers[brought.barrier].waited.data() + warp * LANES;
        if (*std::max_element(waited, waited + LANES) <= brought.phase) {
            fail("wgmma: reads what a tensor copy brought, whose barrier no thread of the warp has waited for");
        }
    }
    Written written = the_hopper.written[at / 16];
    const uint64_t* visible = the_hopper.visible.data();
    auto sees = [&](uint64_t until) { return until >= written.when; };
    if (!sees(visible[written.by]) && !std::all_of(visible + warp * LANES, visible + (warp + 1) * LANES, sees)) {
        fail("wgmma: reads what a copy wrote without fence.proxy.async in between");
    }
    memcpy(eight, s.shared + at, sizeof eight);
}

// Reads the right factor and adds up, in one thread for all of the warp; sums are those of `mma` (kernels/tensor.cuh).
inline void multiply(HopperWarp& warp, Issued& issued, unsigned warp_index) {
    if (issued.done) return;
    issued.done = true;
    const Product& first = issued.lanes[0];
    unsigned columns = first.count / 4 * 8;
    static double left[16][16], right[16][256], out[16][256];
    for (unsigned lane = 0; lane < LANES; lane++)
        for (unsigned i = 0; i < 8; i++) {
            uint16_t bits = issued.left[lane][i / 2] >> i % 2 * 16;
            left[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i % 2 + i / 4 * 8] = first.value(bits);
        }
    for (unsigned i = 0; i < 2 * columns; i++) {
        uint16_t eight[8];
        unsigned k = first.by_rows ? i / (columns / 8) : i % 2 * 8, n = first.by_rows ? i % (columns / 8) * 8 : i / 2;
        read_eight(eight, first, k, n, warp_index);
        for (unsigned j = 0; j < 8; j++) right[first.by_rows ? k : k + j][first.by_rows ? n + j : n] = first.value(eight[j]);
    }
    Sums& sums = *std::find_if(warp.sums.begin(), warp.sums.end(), [&](const Sums& s) { return s.lanes[0] == first.sums; });
    auto each = [&](auto&& use) {
        for (unsigned lane = 0; lane < LANES; lane++)
            for (unsigned i = 0; i < first.count; i++) {
                use(out[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2], sums.values[lane][i]);
            }
    };
    each([&](double& out, float sum) { out = first.add ? sum : 0.0f; });
    for (unsigned row = 0; row < 16; row++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned n = 0; n < columns; n++) out[row][n] += left[row][k] * right[k][n];
    each([&](double out, float& sum) { sum = float(out); });
}

inline void multiply_all(HopperWarp& warp, unsigned warp_index) {
    for (auto& group : warp.groups)
        for (Issued& issued : group) multiply(warp, issued, warp_index);
    for (Issued& issued : warp.open) multiply(warp, issued, warp_index);
}

inline void wgmma(const char* where, Product product) {
    warp_operation(0xffffffffu, product, where, [](Product** lanes, uint32_t) {
        unsigned index = self().warp;
        HopperWarp& warp = the_hopper.warps[index];
        if (!warp.fenced) fail("wgmma: no wgmma.fence since the warp last waited for products");
        Issued issued{};
        const Product& first = *lanes[0];
        Sums* sums = nullptr;
        for (Sums& s : warp.sums)
            if (s.lanes[0] == first.sums) sums = &s;
        bool fresh = !sums;
        if (fresh) {
            warp.sums.emplace_back();
            sums = &warp.sums.back();
            sums->count = first.count;
        }
        if (sums->count != first.count) fail("wgmma: products of different shapes into the same sums");
        for (unsigned lane = 0; lane < LANES; lane++) {
            const Product& own = *lanes[lane];
            if (own.matrix != first.matrix || own.add != first.add) fail("wgmma: lanes differ in the right factor");
            issued.lanes[lane] = own;
            memcpy(issued.left[lane], own.left, sizeof issued.left[lane]);
            if (!fresh) continue;
            sums->lanes[lane] = own.sums;
            sums->values[lane].assign(own.sums, own.sums + own.count);
            for (unsigned i = 0; i < own.count; i++) memcpy(&own.sums[i], &POISON, sizeof POISON);
        }
        warp.open.push_back(issued);
        const Scheduler& s = scheduler();
        bool now = s.order == 2 ? next_random() % 2 : !s.early;
        if (now) multiply_all(warp, index);
    });
}

inline void wgmma_fence(const char* where) {
    sync_warp(where);
    sanitize::Quiet quiet;
    the_hopper.warps[self().warp].fenced = true;
}

inline void wgmma_commit(const char* where) {
    char nothing = 0;
    warp_operation(0xffffffffu, nothing, where, [](char**, uint32_t) {
        HopperWarp& warp = the_hopper.warps[self().warp];
        warp.groups.push_back(std::move(warp.open));
        warp.open.clear();
    });
}

// The sums that no product of the `open` youngest groups adds to are given back.
inline void give_back(HopperWarp& warp) {
    auto busy = [&](const Sums& sums) {
        for (auto& group : warp.groups)
            for (Issued& issued : group)
                if (issued.lanes[0].sums == sums.lanes[0]) return true;
        return false;
    };
    for (size_t i = 0; i < warp.sums.size();) {
        Sums& sums = warp.sums[i];
        if (busy(sums)) {
            i++;
            continue;
        }
        for (unsigned lane = 0; lane < LANES; lane++)
            for (unsigned j = 0; j < sums.count; j++) {
                float& sum = sums.lanes[lane][j];
                if (memcmp(&sum, &POISON, sizeof sum)) fail("wgmma: a sum was changed while a product adds to it");
                sum = sums.values[lane][j];
            }
        warp.sums.erase(warp.sums.begin() + i);
    }
}

inline void wgmma_wait(const char* where, unsigned open) {
    if (scheduler().early) {
        sanitize::Quiet quiet;
        delay(where);
    }
    warp_operation(0xffffffffu, open, where, [](unsigned** lanes, uint32_t) {
        HopperWarp& warp = the_hopper.warps[self().warp];
        if (!warp.open.empty()) fail("wgmma.wait_group: products that are in no group");
        while (warp.groups.size() > *lanes[0]) {
            for (Issued& issued : warp.groups[0]) {
                multiply(warp, issued, self().warp);
                for (const Product& lane : issued.lanes)
                    if (memcmp(lane.left, issued.left[&lane - issued.lanes], sizeof issued.left[0])) {
                        fail("wgmma: a left factor was changed while a product reads it");
                    }
            }
            warp.groups.erase(warp.groups.begin());
        }
        give_back(warp);
        warp.fenced = false;
    });
}

}  // namespace simt
