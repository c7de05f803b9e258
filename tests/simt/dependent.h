// How a kernel begins (begin_kernel of kernels/prelude.cuh), where it may have started while the one before it in the stream still
// runs: included by simt.h.
//
// Whatever a thread does before begin_kernel may come before anything that the kernel before does. So a thread may not return there,
// nor use memory of the device: asynchronous copies and atomic operations are seen in every build, loads and stores where accesses are
// counted (accesses.cpp). The fake driver hands over the kernel before, not run yet, to one that was launched to start early
// (simt_start_before): it runs when all threads of the first block have come to begin_kernel, or at the end if none asks for it.
#pragma once

namespace simt {

typedef void (*Run)(void* argument);

struct Previous {
    Run run = nullptr;
    void* argument = nullptr;
};
// The kernel before, if it has not ended.
inline Previous the_previous;

SIMT_UNWATCHED inline void must_have_begun() {
    if (!self().begun) fail("memory of the device is used before begin_kernel");
}

inline void begin_kernel(const char* where) {
    sanitize::Quiet quiet;
    Fiber& me = self();
#ifndef PLANT_NO_KERNEL_WAIT
    if (the_previous.run) {
        delay(where);
        // None but the first to go on finds it.
        if (the_previous.run) {
            scheduler().asks = &me;
            switch_to(nullptr);
        }
    }
#endif
    me.begun = true;
}

// What belongs to the simulator of a library, whose kernels may run inside each other.
struct Simulator {
    Scheduler scheduler;
    Hopper hopper;
    ~Simulator() {
        for (Fiber& fiber : scheduler.fibers) munmap(fiber.stack - PAGE, PAGE + STACK);
        free(scheduler.shared);
    }
    void exchange() {
        std::swap(scheduler, the_scheduler);
        std::swap(hopper, the_hopper);
    }
};

inline void run_previous() {
    Previous previous = std::exchange(the_previous, Previous());
    if (!previous.run) return;
    Simulator other;
    other.exchange();
    previous.run(previous.argument);
    other.exchange();
}

inline Fiber* answer() {
    Fiber* asks = std::exchange(the_scheduler.asks, nullptr);
    if (asks) run_previous();
    return asks;
}

}  // namespace simt

// The next launch starts before a kernel of this or another library has run, which `run` runs.
extern "C" __attribute__((visibility("default"))) void simt_start_before(simt::Run run, void* argument) {
    simt::the_previous = {run, argument};
}
