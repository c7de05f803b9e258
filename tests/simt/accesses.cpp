// The calls that g++ puts before every access with -fsanitize=thread, here in place of ThreadSanitizer's: accesses of the
// lanes of a warp that come from one instruction at the same time around are one request. They are counted if SIMT_COUNT is set, and
// in any case none to a buffer may come before begin_kernel.
//
// A request to a buffer is served in sectors of 32 bytes. One to shared memory takes a wavefront for every word that a bank of 32
// is asked for beyond the first: by all lanes for words, by half a warp for 8 bytes, by a quarter for 16.
#include "accesses.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <vector>

int accesses_uncounted = 0;
extern "C" char __data_start, _end;

namespace {

struct Buffer {
    uintptr_t from, to;
    int parameter = -1;
};
struct Access {
    unsigned lane, size;
    uintptr_t address;
};
struct Requests {
    unsigned visits[32] = {};  // of each lane
    std::vector<std::vector<Access>> open;
};
struct Counts {
    uint64_t requests = 0, units = 0, ideal = 0;
};
enum { SHARED = -1, OTHER = -2 };

std::vector<Buffer> buffers;
std::string kernel;
uint64_t current_block = 0;
std::map<std::tuple<const void*, unsigned, int, bool>, Requests> requests;  // by instruction, warp, parameter, direction
std::map<std::tuple<std::string, int, bool>, Counts> counts;

// The distinct ones of some units that bytes lie in.
size_t distinct(std::vector<uintptr_t>& units) {
    std::sort(units.begin(), units.end());
    return std::unique(units.begin(), units.end()) - units.begin();
}

void count_sectors(const std::vector<Access>& request, Counts& counts) {
    static std::vector<uintptr_t> sectors, words;
    sectors.clear(), words.clear();
    unsigned unit = std::min(request[0].size, 4u);
    for (const Access& access : request)
        for (unsigned i = 0; i < access.size; i += unit) {
            words.push_back((access.address + i) / unit);
            sectors.push_back((access.address + i) / 32);
        }
    counts.units += distinct(sectors);
    counts.ideal += (distinct(words) * unit + 31) / 32;
}

void count_wavefronts(const std::vector<Access>& request, Counts& counts) {
    unsigned size = request[0].size, together = size <= 4 ? 32 : size <= 8 ? 16 : 8;
    static std::vector<uintptr_t> words;
    for (unsigned first = 0; first < 32; first += together) {
        words.clear();
        for (const Access& access : request)
            if (access.lane >= first && access.lane < first + together)
                for (unsigned i = 0; i < std::max(size, 4u); i += 4) words.push_back((access.address + i) / 4);
        size_t asked = distinct(words), of_bank[32] = {};
        for (size_t i = 0; i < asked; i++) of_bank[words[i] % 32]++;
        counts.units += *std::max_element(of_bank, of_bank + 32);
        counts.ideal += (asked + 31) / 32;
    }
}

void close_requests() {
    for (auto& [key, value] : requests) {
        int parameter = std::get<2>(key);
        Counts& sum = counts[{kernel, parameter, std::get<3>(key)}];
        for (const auto& request : value.open) {
            sum.requests++;
            parameter == SHARED ? count_wavefronts(request, sum) : count_sectors(request, sum);
        }
    }
    requests.clear();
}

int parameter_of(uintptr_t address, const SimtPlace& place) {
    for (const Buffer& buffer : buffers)
        if (address >= buffer.from && address < buffer.to) return buffer.parameter < 0 ? OTHER : buffer.parameter;
    auto in = [&](const void* from, size_t size) { return address - uintptr_t(from) < size; };
    if (in(place.shared, place.shared_size)) return SHARED;
    // Static shared arrays lie among the program's own data.
    bool is_static = in(&__data_start, &_end - &__data_start) && !in(place.scheduler, place.scheduler_size);
    return is_static ? SHARED : OTHER;
}

}  // namespace

extern "C" {

void accesses_note(const void* instruction, bool store, const void* address, unsigned size) {
    SimtPlace place;
    static const bool counted = getenv("SIMT_COUNT");
    if (accesses_uncounted || !size || !simt_place(&place) || (place.begun && !counted)) return;
    int parameter = parameter_of(uintptr_t(address), place);
    if (parameter == OTHER) return;
    if (parameter != SHARED && !place.begun) simt_fail("memory of the device is used before begin_kernel");
    if (place.block != current_block) close_requests();
    current_block = place.block;
    Requests& of = requests[{instruction, place.warp, parameter, store}];
    unsigned visit = of.visits[place.lane]++;
    if (of.open.size() <= visit) of.open.resize(visit + 1);
    of.open[visit].push_back({place.lane, size, uintptr_t(address)});
}
void accesses_buffer(const void* from, size_t size) { buffers.push_back({uintptr_t(from), uintptr_t(from) + size}); }
void accesses_begin(const char* name, const uint64_t* arguments, size_t count) {
    close_requests();
    kernel = name;
    for (Buffer& buffer : buffers) {
        buffer.parameter = -1;
        for (size_t i = count; i-- > 0;)
            if (arguments[i] >= buffer.from && arguments[i] < buffer.to) buffer.parameter = i;
    }
}
void accesses_report() {
    close_requests();
    for (const auto& [key, sum] : counts) {
        const auto& [name, parameter, store] = key;
        std::string what = parameter == SHARED ? "shared" : std::to_string(parameter);
        printf("%s %s %s %llu %llu %llu\n", name.c_str(), what.c_str(), store ? "store" : "load",
               (unsigned long long)sum.requests, (unsigned long long)sum.units, (unsigned long long)sum.ideal);
    }
}

#define WATCH(name, store, size) \
    void __tsan_##name(void* p) { accesses_note(__builtin_return_address(0), store, p, size); }
#define BOTH(size)                            \
    WATCH(read##size, false, size)            \
    WATCH(write##size, true, size)            \
    WATCH(unaligned_read##size, false, size)  \
    WATCH(unaligned_write##size, true, size)  \
    WATCH(volatile_read##size, false, size)   \
    WATCH(volatile_write##size, true, size)
BOTH(1) BOTH(2) BOTH(4) BOTH(8) BOTH(16)
void __tsan_read_range(void* p, size_t size) { accesses_note(__builtin_return_address(0), false, p, size); }
void __tsan_write_range(void* p, size_t size) { accesses_note(__builtin_return_address(0), true, p, size); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
