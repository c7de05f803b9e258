// Every access of a kernel to memory, counted as the hardware would serve it: accesses.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

// Who runs, and where what is not the kernel's lies.
struct SimtPlace {
    unsigned lane, warp;
    uint64_t block;
    const unsigned char* shared;
    size_t shared_size;
    const void* scheduler;
    size_t scheduler_size;
    bool begun;  // has waited for the kernel before
};

extern "C" {
// False outside of kernels.
bool simt_place(SimtPlace* place);
// Ends the process with a message.
[[noreturn]] void simt_fail(const char* message);
// Above 0, accesses are not a kernel's.
extern int accesses_uncounted;
// An instruction's access.
void accesses_note(const void* instruction, bool store, const void* address, unsigned size);
// A buffer that kernels may be given.
void accesses_buffer(const void* from, size_t size);
// A launch begins.
void accesses_begin(const char* kernel, const uint64_t* arguments, size_t count);
// A line for each kernel, parameter (or `shared`) and direction on stdout: kernel, parameter, load or store, requests, units,
// and the fewest units that as many bytes need.
void accesses_report();
}
