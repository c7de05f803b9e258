// CUDA kernels on the CPU: include this before the text of a kernel and compile it with g++.
//
// A CUDA thread is a fiber with a stack of its own; the blocks of a launch run one after another on the calling
// thread. A fiber runs until it waits: at a warp operation for the other lanes of its mask, at a barrier for its
// block. What runs next is the schedule's choice, and a wrong kernel is wrong under some schedules only:
//   SIMT_ORDER=fwd|rev|rand:<seed>   which of the fibers that can run goes on, and which block is the next
//   SIMT_ASYNC=late|early            cp.async copies when it is waited for (default), or at once; tensor copies: tensor_copy.h
// Mistakes that no schedule can hide end the process with a message: divergent barriers, lanes that meet at different
// operations, deadlocks, copies never waited for, misaligned vectors, more shared memory than the device has, and threads
// that return, copy asynchronously or by atomic operations before the kernel before theirs has ended (dependent.h).
//
// Built with -fsanitize=address the sanitizer sees every stack, red zones around static shared arrays, and the end of
// dynamic shared memory. Built with -fsanitize=thread every fiber is a thread to the sanitizer, which knows barriers
// and warp operations as the only order between them: a missing one is a report with both lines.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#include <vector>

#include "sanitize.h"
#include "tensor_map.h"

#define SIMT 1
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static
#define SIMT_TEXT_(x) #x
#define SIMT_TEXT(x) SIMT_TEXT_(x)
#define SIMT_HERE __FILE__ ":" SIMT_TEXT(__LINE__)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace simt {

constexpr unsigned LANES = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t MOST_SHARED = 227 << 10;
constexpr size_t PAGE = 4096;
constexpr size_t STACK = SIMT_SANITIZED ? 256 << 10 : 64 << 10;

enum class State { Ready, AtWarp, AtBarrier, AtMbarrier, AtRegisters, AtAsync, Done };

// A cp.async that has not landed.
struct Copy {
    void* to;
    const void* from;
    bool zeros;
};

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    uint3 thread{};
    unsigned index = 0, lane = 0, warp = 0;
    State state = State::Ready;
    const char* where = "";
    const void* awaited = nullptr;  // barrier in shared memory
    bool begun = false;             // has waited for the kernel before
    std::vector<Copy> open;                 // issued, not committed
    std::vector<std::vector<Copy>> groups;  // committed, oldest first
    sanitize::Fiber sanitizer;
};

// Lanes of one mask on their way to one warp operation.
struct Meeting {
    uint32_t mask = 0, arrived = 0;
    const void* operation = nullptr;
    void* operands[LANES];
};

struct Warp {
    uint32_t lanes = 0, gone = 0;
    Meeting meetings[4];
};

struct Scheduler {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned> ready;    // in the order in which they became so
    std::vector<unsigned> delayed;  // those that go on when no other can
    std::vector<unsigned> at_barrier;
    unsigned threads = 0, live = 0;
    Fiber* current = nullptr;
    Fiber* asks = nullptr;  // for the kernel before, which the host runs
    void* host_stack_pointer = nullptr;
    sanitize::Host host;
    uint3 block{};
    dim3 block_size, grid_size;
    unsigned char* shared = nullptr;
    size_t shared_size = 0;
    int order = 0;  // 0 fwd, 1 rev, 2 rand
    uint64_t random = 1;
    bool early = false;
    void (*body)(void*) = nullptr;
    void* argument = nullptr;
};

inline Scheduler the_scheduler;
SIMT_UNWATCHED inline Scheduler& scheduler() { return the_scheduler; }
SIMT_UNWATCHED inline Fiber& self() { return *the_scheduler.current; }

[[noreturn]] inline void fail(const char* message) {
    Scheduler& s = scheduler();
    fflush(stdout);
    fprintf(stderr, "simt: %s [block %u,%u,%u]\n", message, s.block.x, s.block.y, s.block.z);
    unsigned shown = 0;
    for (unsigned i = 0; i < s.threads && shown < 8; i++) {
        const Fiber& f = s.fibers[i];
        if (f.state == State::Ready) continue;
        const char* what = f.state == State::AtWarp        ? "waits for its warp"
                           : f.state == State::AtBarrier   ? "waits at a barrier"
                           : f.state == State::AtMbarrier  ? "waits for a phase of a barrier in shared memory"
                           : f.state == State::AtRegisters ? "waits for registers"
                           : f.state == State::AtAsync     ? "waits for copies or products"
                                                           : "has returned";
        fprintf(stderr, "  thread %u %s (%s)\n", f.index, what, f.where);
        shown++;
    }
    abort();
}

// Saves the callee-saved registers on this stack, stores the stack pointer, and goes on from another one.
extern "C" void simt_switch(void** save, void* load);
#if !defined(__x86_64__)
#error "simt.h: write simt_switch for this CPU"
#endif
asm(".pushsection .text\n"
    ".weak simt_switch\n"
    ".hidden simt_switch\n"
    ".type simt_switch,@function\n"
    "simt_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".popsection\n");

// Goes on with another fiber, or (none) with the host.
SIMT_UNWATCHED inline void switch_to(Fiber* next, bool for_good = false) {
    Scheduler& s = scheduler();
    Fiber* from = s.current;
    s.current = next;
    sanitize::leave(from ? &from->sanitizer : nullptr, s.host, next ? &next->sanitizer : nullptr,
                    next ? next->stack : nullptr, STACK, for_good);
    simt_switch(from ? &from->stack_pointer : &s.host_stack_pointer,
                next ? next->stack_pointer : s.host_stack_pointer);
    sanitize::arrive(from ? &from->sanitizer : nullptr, s.host);
}

inline uint64_t next_random() {
    Scheduler& s = scheduler();
    s.random = s.random * 6364136223846793005ull + 1442695040888963407ull;
    return s.random >> 33;
}

// Of tensor_copy.h: lets a copy that is under way land, because the schedule chooses so or nothing else can go on; whether one did.
bool land_one(bool by_choice);

inline Fiber* pick() {
    Scheduler& s = scheduler();
    land_one(true);
    while (s.ready.empty() && s.delayed.empty() && land_one(false)) {
    }
    std::vector<unsigned>& from = s.ready.empty() ? s.delayed : s.ready;
    if (from.empty()) return nullptr;
    size_t i = 0;
    if (s.order == 1) i = from.size() - 1;
    if (s.order == 2) i = next_random() % from.size();
    Fiber* fiber = &s.fibers[from[i]];
    from.erase(from.begin() + i);
    return fiber;
}

inline void wait(State why, const char* where) {
    Fiber& me = self();
    me.state = why;
    me.where = where;
    Fiber* next = pick();
    if (!next) fail("deadlock: every thread waits (a divergent barrier or warp operation?)");
    if (next != &me) switch_to(next);
}

inline void wake(unsigned index) {
    Scheduler& s = scheduler();
    s.fibers[index].state = State::Ready;
    s.ready.push_back(index);
}

// The lanes in `mask` meet; the last one to come combines everybody's operands, and all go on.
template <class Operand, class Combine>
void warp_operation(uint32_t mask, Operand& operand, const char* where, Combine&& combine) {
    sanitize::Quiet quiet;
    static const char identity = 0;
    Fiber& me = self();
    Warp& warp = scheduler().warps[me.warp];
    if (!(mask >> me.lane & 1)) fail("a lane calls a warp operation whose mask leaves it out");
    uint32_t wanted = mask & warp.lanes;
    if (wanted & warp.gone) fail("a lane in the mask of a warp operation has returned");
    Meeting* meeting = nullptr;
    for (Meeting& m : warp.meetings)
        if (m.arrived && m.mask == mask) meeting = &m;
    for (Meeting& m : warp.meetings)
        if (!meeting && !m.arrived) {
            meeting = &m;
            m.mask = mask;
            m.operation = &identity;
        }
    if (!meeting) fail("too many masks at warp operations of one warp");
    if (meeting->operation != &identity) fail("lanes of one warp meet at different operations");
    meeting->operands[me.lane] = &operand;
    meeting->arrived |= 1u << me.lane;
    sanitize::release(meeting);
    if (meeting->arrived == wanted) {
        combine(reinterpret_cast<Operand**>(meeting->operands), wanted);
        meeting->arrived = 0;
        for (unsigned lane = 0; lane < LANES; lane++)
            if (lane != me.lane && (wanted >> lane & 1)) wake(me.index - me.lane + lane);
    } else {
        wait(State::AtWarp, where);
    }
    sanitize::acquire(meeting);
}

inline void barrier(const char* where) {
    sanitize::Quiet quiet;
    Scheduler& s = scheduler();
    if (s.live != s.threads) fail("__syncthreads after a thread of the block has returned");
    sanitize::release(&s.at_barrier);
    if (s.at_barrier.size() + 1 == s.threads) {
        for (unsigned i : s.at_barrier) wake(i);
        s.at_barrier.clear();
    } else {
        s.at_barrier.push_back(self().index);
        wait(State::AtBarrier, where);
    }
    sanitize::acquire(&s.at_barrier);
}

// Of hopper.h: what a block starts with, and what may not be left when a warp's thread returns.
void hopper_begin();
void hopper_finish();
// Of dependent.h: runs the kernel before for a thread that has asked for it, if one has, and if none has.
Fiber* answer();
void run_previous();

inline void finish() {
    sanitize::release(&the_scheduler);
    Fiber* next;
    {
        sanitize::Quiet quiet;
        Scheduler& s = scheduler();
        Fiber& me = self();
        me.state = State::Done;
        me.where = "the end";
        s.live--;
        s.warps[me.warp].gone |= 1u << me.lane;
        if (!me.begun) fail("a thread returns before begin_kernel");
        if (!me.open.empty() || !me.groups.empty()) fail("a thread returns with cp.async copies not waited for");
        hopper_finish();
        next = pick();
        if (!next && s.live) fail("deadlock: the other threads wait for one that has returned");
    }
    switch_to(next, true);
}

extern "C" inline void simt_enter() {
    sanitize::enter(the_scheduler.host);
    sanitize::acquire(&the_scheduler);
    the_scheduler.body(the_scheduler.argument);
    finish();
}

inline void run_block(uint3 block) {
    sanitize::acquire(&the_scheduler);  // blocks run in turn: only races inside one are reported
    sanitize::Quiet quiet;
    Scheduler& s = scheduler();
    s.block = block;
    s.live = s.threads;
    std::fill(s.warps.begin(), s.warps.end(), Warp());
    memset(s.shared, 0xff, s.shared_size);  // not a number in every dtype
    hopper_begin();
    for (unsigned i = 0; i < s.threads; i++) {
        Fiber& f = s.fibers[i];
        unsigned x = s.block_size.x, y = s.block_size.y;
        f.index = i;
        f.lane = i % LANES;
        f.warp = i / LANES;
        f.thread = {i % x, i / x % y, i / x / y};
        f.state = State::Ready;
        f.begun = false;
        s.warps[f.warp].lanes |= 1u << f.lane;
        sanitize::create(f.sanitizer, f.stack, STACK);
        void** top = reinterpret_cast<void**>(f.stack + STACK);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(simt_enter);
        for (int saved = 0; saved < 6; saved++) *--top = nullptr;
        f.stack_pointer = top;
        s.ready.push_back(i);
    }
    sanitize::release(&the_scheduler);
    for (Fiber* next = pick(); next; next = answer()) switch_to(next);
}

inline void set_up(dim3 grid, dim3 block, size_t shared) {
    Scheduler& s = scheduler();
    s.threads = block.x * block.y * block.z;
    s.grid_size = grid;
    s.block_size = block;
    if (!s.threads || s.threads > MOST_THREADS) fail("a block of no or more than 1024 threads");
    if (shared > MOST_SHARED) fail("more than 227 KB of dynamic shared memory");
    s.warps.resize((s.threads + LANES - 1) / LANES);
    size_t held = s.fibers.size();
    if (held < s.threads) {
        s.fibers.resize(s.threads);
        for (size_t i = held; i < s.threads; i++) {
            void* memory = mmap(nullptr, PAGE + STACK, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) fail("no memory for a stack");
            mprotect(memory, PAGE, PROT_NONE);
            s.fibers[i].stack = static_cast<char*>(memory) + PAGE;
        }
    }
    free(s.shared);
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, shared + 16)) fail("no shared memory");
    s.shared = static_cast<unsigned char*>(memory);
    s.shared_size = shared;
    sanitize::forbid(s.shared + shared, 16);
    sanitize::set_up(s.host);
    const char* async = getenv("SIMT_ASYNC");
    s.early = async && !strcmp(async, "early");
    const char* order = getenv("SIMT_ORDER");
    s.order = !order || !strcmp(order, "fwd") ? 0 : !strcmp(order, "rev") ? 1 : 2;
    s.random = s.order == 2 && !strncmp(order, "rand:", 5) ? strtoull(order + 5, nullptr, 10) : 1;
}

// Runs a grid, block after block.
template <class Body>
void launch(dim3 grid, dim3 block, size_t shared, Body&& body) {
    set_up(grid, block, shared);
    Scheduler& s = scheduler();
    s.body = [](void* body) { (*static_cast<std::remove_reference_t<Body>*>(body))(); };
    s.argument = &body;
    std::vector<uint3> blocks;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) blocks.push_back({x, y, z});
    if (s.order == 1) std::reverse(blocks.begin(), blocks.end());
    for (size_t i = blocks.size(); s.order == 2 && i > 1; i--) std::swap(blocks[i - 1], blocks[next_random() % i]);
    for (uint3 block : blocks) run_block(block);
    run_previous();
    sanitize::acquire(&the_scheduler);
}

#ifdef SIMT_ACCESSES
extern "C" SIMT_UNWATCHED bool simt_place(SimtPlace* place) {
    const Scheduler& s = the_scheduler;
    if (!s.current) return false;
    uint64_t block = s.block.x + s.grid_size.x * (s.block.y + uint64_t(s.grid_size.y) * s.block.z);
    *place = {s.current->lane, s.current->warp, block, s.shared, s.shared_size, &s, sizeof s, s.current->begun};
    return true;
}
extern "C" [[noreturn]] void simt_fail(const char* message) { fail(message); }
#endif

SIMT_UNWATCHED inline uint3 thread_index() { return the_scheduler.current->thread; }
SIMT_UNWATCHED inline uint3 block_index() { return the_scheduler.block; }
SIMT_UNWATCHED inline dim3 block_size() { return the_scheduler.block_size; }
SIMT_UNWATCHED inline dim3 grid_size() { return the_scheduler.grid_size; }
SIMT_UNWATCHED inline unsigned char* dynamic_shared() { return the_scheduler.shared; }

enum class Shuffle { Index, Xor, Up, Down };

template <class T>
T shuffle(const char* where, Shuffle kind, unsigned mask, T value, int a, int width = LANES) {
    struct Operand {
        T value;
        int source;
    } operand{value, 0};
    {
        sanitize::Quiet quiet;
        int lane = self().lane, inside = lane & (width - 1), first = lane - inside, source = inside;
        if (kind == Shuffle::Index) source = a & (width - 1);
        if (kind == Shuffle::Xor && (inside ^ a) < width) source = inside ^ a;
        if (kind == Shuffle::Up && inside - a >= 0) source = inside - a;
        if (kind == Shuffle::Down && inside + a < width) source = inside + a;
        operand.source = first + source;
    }
    warp_operation(mask, operand, where, [](Operand** lanes, uint32_t mask) {
        T values[LANES];
        for (unsigned l = 0; l < LANES; l++)
            if (mask >> l & 1) values[l] = lanes[l]->value;
        for (unsigned l = 0; l < LANES; l++) {
            if (!(mask >> l & 1)) continue;
            if (!(mask >> lanes[l]->source & 1)) fail("a shuffle reads from a lane that is not in its mask");
            lanes[l]->value = values[lanes[l]->source];
        }
    });
    return operand.value;
}

inline unsigned ballot(const char* where, unsigned mask, bool predicate) {
    unsigned operand = predicate;
    warp_operation(mask, operand, where, [](unsigned** lanes, uint32_t mask) {
        unsigned all = 0;
        for (unsigned l = 0; l < LANES; l++)
            if (mask >> l & 1) all |= *lanes[l] << l;
        for (unsigned l = 0; l < LANES; l++)
            if (mask >> l & 1) *lanes[l] = all;
    });
    return operand;
}

inline void sync_warp(const char* where, unsigned mask = 0xffffffffu) {
    char nothing = 0;
    warp_operation(mask, nothing, where, [](char**, uint32_t) {});
}

}  // namespace simt

#include "hopper.h"
#include "dependent.h"
#include "tensor_copy.h"

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())
#define __syncthreads() simt::barrier(SIMT_HERE)
#define __threadfence() ((void)0)
#define __syncwarp(...) simt::sync_warp(SIMT_HERE __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) simt::shuffle(SIMT_HERE, simt::Shuffle::Index, __VA_ARGS__)
#define __shfl_xor_sync(...) simt::shuffle(SIMT_HERE, simt::Shuffle::Xor, __VA_ARGS__)
#define __shfl_up_sync(...) simt::shuffle(SIMT_HERE, simt::Shuffle::Up, __VA_ARGS__)
#define __shfl_down_sync(...) simt::shuffle(SIMT_HERE, simt::Shuffle::Down, __VA_ARGS__)
#define __ballot_sync(mask, predicate) simt::ballot(SIMT_HERE, mask, predicate)
#define __any_sync(mask, predicate) (simt::ballot(SIMT_HERE, mask, predicate) != 0)
#define __all_sync(mask, predicate) (simt::ballot(SIMT_HERE, mask, !(predicate)) == 0)

// One thread at a time runs between two waits, so that an atomic operation is a plain one that no sanitizer watches.
template <class T>
SIMT_UNWATCHED inline T atomicAdd(T* to, T value) {
    simt::must_have_begun();
    T old = *to;
    *to = old + value;
    return old;
}
template <class T>
SIMT_UNWATCHED inline T atomicMax(T* to, T value) {
    simt::must_have_begun();
    T old = *to;
    *to = old > value ? old : value;
    return old;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
