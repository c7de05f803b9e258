// What the sanitizers must be told about fibers; nothing in a plain build.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_SANITIZED 1
#define SIMT_UNWATCHED
#elif defined(SIMT_ACCESSES)
#include "accesses.h"
#define SIMT_SANITIZED 0
#define SIMT_UNWATCHED __attribute__((noinline, no_sanitize("thread")))
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#define SIMT_SANITIZED 1
#define SIMT_UNWATCHED __attribute__((noinline, no_sanitize("thread")))
#else
#define SIMT_SANITIZED 0
#define SIMT_UNWATCHED
#endif

namespace sanitize {

#if defined(__SANITIZE_ADDRESS__)

struct Fiber {
    void* fake_stack = nullptr;
};
struct Host {
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    size_t size = 0;
};
// All that a fiber leaves poisoned are the frames that it ends in, at the top of its stack: those below have returned.
constexpr size_t ENTRY_FRAMES = 16 << 10;
inline void create(Fiber&, char* stack, size_t size) {
    __asan_unpoison_memory_region(stack + size - ENTRY_FRAMES, ENTRY_FRAMES);
}
inline void leave(Fiber* from, Host& host, Fiber*, char* stack, size_t size, bool for_good) {
    void** save = for_good ? nullptr : from ? &from->fake_stack : &host.fake_stack;
    if (stack) {
        __sanitizer_start_switch_fiber(save, stack, size);
    } else {
        __sanitizer_start_switch_fiber(save, host.bottom, host.size);
    }
}
inline void arrive(Fiber* me, Host& host) {
    __sanitizer_finish_switch_fiber(me ? me->fake_stack : host.fake_stack, nullptr, nullptr);
}
// First thing on a new fiber; the first fiber of all learns where the host's stack is.
inline void enter(Host& host) {
    if (host.bottom) {
        __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    } else {
        __sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.size);
    }
}
inline void set_up(Host& host) { host.bottom = nullptr; }
inline void forbid(void* from, size_t size) { __asan_poison_memory_region(from, size); }
inline void release(void*) {}
inline void acquire(void*) {}
struct Quiet {
    ~Quiet() {}
};

#elif defined(SIMT_ACCESSES)

struct Fiber {
    int uncounted = 0;
};
struct Host {
    int uncounted = 0;
};
inline void create(Fiber& fiber, char*, size_t) { fiber.uncounted = 0; }
SIMT_UNWATCHED inline void leave(Fiber* from, Host& host, Fiber*, char*, size_t, bool) {
    (from ? from->uncounted : host.uncounted) = accesses_uncounted;
}
SIMT_UNWATCHED inline void arrive(Fiber* me, Host& host) { accesses_uncounted = me ? me->uncounted : host.uncounted; }
SIMT_UNWATCHED inline void enter(Host&) { accesses_uncounted = 0; }
inline void set_up(Host&) {}
inline void forbid(void*, size_t) {}
inline void release(void*) {}
inline void acquire(void*) {}
// While it lives, nothing is counted.
struct Quiet {
    SIMT_UNWATCHED Quiet() { accesses_uncounted++; }
    SIMT_UNWATCHED ~Quiet() { accesses_uncounted--; }
};
struct Whole {
    SIMT_UNWATCHED Whole(const void* read, const void* written, unsigned size) {
        if (read) accesses_note(__builtin_return_address(0), false, read, size);
        if (written) accesses_note(__builtin_return_address(0), true, written, size);
        accesses_uncounted++;
    }
    SIMT_UNWATCHED ~Whole() { accesses_uncounted--; }
};

#elif defined(__SANITIZE_THREAD__)

struct Fiber {
    void* handle = nullptr;
    unsigned uses = 0;
};
struct Host {
    void* handle = nullptr;
};
// A sanitizer's fiber is dear to make: it serves many blocks, but not for ever, since each leaves frames on its stack
// of calls that never return.
inline void create(Fiber& fiber, char*, size_t) {
    if (fiber.handle && ++fiber.uses < 500) return;
    if (fiber.handle) __tsan_destroy_fiber(fiber.handle);
    fiber.handle = __tsan_create_fiber(0);
    fiber.uses = 0;
}
SIMT_UNWATCHED inline void leave(Fiber*, Host& host, Fiber* to, char*, size_t, bool) {
    __tsan_switch_to_fiber(to ? to->handle : host.handle, __tsan_switch_to_fiber_no_sync);
}
SIMT_UNWATCHED inline void arrive(Fiber*, Host&) {}
inline void enter(Host&) {}
inline void set_up(Host& host) { host.handle = __tsan_get_current_fiber(); }
inline void forbid(void*, size_t) {}
inline void release(void* key) { __tsan_release(key); }
inline void acquire(void* key) { __tsan_acquire(key); }
// While it lives, nothing that is read or written counts as a race: the shim's own bookkeeping.
struct Quiet {
    Quiet() {
        AnnotateIgnoreReadsBegin("", 0);
        AnnotateIgnoreWritesBegin("", 0);
    }
    ~Quiet() {
        AnnotateIgnoreReadsEnd("", 0);
        AnnotateIgnoreWritesEnd("", 0);
    }
};

#else

struct Fiber {};
struct Host {};
inline void create(Fiber&, char*, size_t) {}
inline void leave(Fiber*, Host&, Fiber*, char*, size_t, bool) {}
inline void arrive(Fiber*, Host&) {}
inline void enter(Host&) {}
inline void set_up(Host&) {}
inline void forbid(void*, size_t) {}
inline void release(void*) {}
inline void acquire(void*) {}
struct Quiet {
    ~Quiet() {}
};

#endif

#ifndef SIMT_ACCESSES
// While it lives, what is read and written is one access of the hardware, of so many bytes.
struct Whole {
    Whole(const void*, const void*, unsigned) {}
    ~Whole() {}
};
#endif

}  // namespace sanitize
