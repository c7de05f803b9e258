// The kernels of one translation unit by name, so that they can be launched as the driver does it: with an array of
// pointers to the arguments. Include this after the kernels' text, then list them:
//   SIMT_KERNELS(SIMT_KERNEL(cast), SIMT_KERNEL(residual_fwd))
#pragma once
#include <tuple>
#include <utility>

struct SimtKernel {
    const char* name;
    int arguments;
    const size_t* sizes;  // of each argument, in bytes
    void (*launch)(void** arguments, dim3 grid, dim3 block, size_t shared);
};

namespace simt {

template <auto kernel, class Signature>
struct Entry;

template <auto kernel, class... Arguments>
struct Entry<kernel, void (*)(Arguments...)> {
    static constexpr size_t sizes[] = {sizeof(Arguments)...};

    template <size_t... I>
    static void run(void** arguments, dim3 grid, dim3 block, size_t shared, std::index_sequence<I...>) {
        std::tuple<std::remove_cv_t<Arguments>...> values{*static_cast<Arguments*>(arguments[I])...};
        simt::launch(grid, block, shared, [&] { kernel(std::get<I>(values)...); });
    }

    static void launch(void** arguments, dim3 grid, dim3 block, size_t shared) {
        run(arguments, grid, block, shared, std::index_sequence_for<Arguments...>());
    }

    static SimtKernel named(const char* name) { return {name, sizeof...(Arguments), sizes, launch}; }
};

}  // namespace simt

#define SIMT_KERNEL(name) simt::Entry<&name, decltype(&name)>::named(#name)
#if PDL
// They were built to wait for the kernel before.
extern "C" __attribute__((visibility("default"))) const bool simt_waits = true;
#endif

#define SIMT_KERNELS(...)                                                                                  \
    extern "C" __attribute__((visibility("default"))) const SimtKernel* simt_find(const char* name) {     \
        static const SimtKernel all[] = {__VA_ARGS__};                                                     \
        for (const SimtKernel& kernel : all)                                                               \
            if (!strcmp(kernel.name, name)) return &kernel;                                                \
        return nullptr;                                                                                    \
    }
