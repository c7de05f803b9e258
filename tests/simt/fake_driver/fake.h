// Shared by the fake driver, the fake NVRTC and the fake cuBLASLt: all three are one library.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

typedef unsigned long long Address;
typedef std::function<void()> Operation;

// A stand-in for a cubin: this, the length of a shared object as u64, and the shared object.
static const char IMAGE[8] = {'f', 'a', 'k', 'e', 'b', 'i', 'n', '1'};

// A number of the environment.
inline size_t number(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}
// Puts an operation at the end of a stream; it runs when somebody waits for it, the nastiest timing that is legal.
int enqueue(void* stream, Operation operation);
// Takes note of a product by an algorithm of this number that took so long, by the device's own clock, which its events read.
void count_product(size_t algorithm, double milliseconds);
// Whether the bytes lie inside one living allocation of the device or of pinned memory.
bool device_owns(Address address, size_t bytes);
// Says what is wrong on stderr and ends the process: what a device would do silently, or at random.
[[noreturn]] void wrong(const std::string& what);
