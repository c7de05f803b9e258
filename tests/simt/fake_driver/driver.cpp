// libcuda.so.1 for tests: the part of the CUDA driver that cudarc and the backend use, on the CPU.
//
// Work is queued per stream and runs only when something waits for it, so that a missing wait reads old bytes. Memory is
// filled with NaNs when it is allocated and again when it is freed. Copies and fills outside of an allocation end the
// process. FAKE_DEVICES (default 1) is the number of devices; FAKE_MEMORY the bytes of one; FAKE_FAIL_OP=<kernel>:<n>
// makes that kernel fail when it runs for the nth time, with FAKE_FAIL_CODE (default an illegal address): the error shows
// at the next wait and in every call from then on. FAKE_FULL_OP=<kernel>:<n> leaves no memory from then on.
// A kernel that is launched to start before the one before it has ended (programmatic stream serialization) starts before that has
// begun; it must have been built to wait for it, and directly follow it.
// FAKE_REPORT is a file that is told at the end how much memory was in use at most, in bytes: of the device, with the
// number of its blocks, and pinned; how many kernels, fills, copies and products of matrices the device ran; how many
// of the kernels were given an address of the host, and how many were to start early; how many bytes were copied to the host; and how
// many of the products were computed by each of cuBLASLt's algorithms.
#include "fake.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_IMAGE = 200,
    NO_BINARY_FOR_GPU = 209,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_LOST = 709,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 904,
    CAPTURE_UNJOINED = 905,
    CAPTURED_EVENT = 907,
};

struct dim3 {
    unsigned x, y, z;
};
// As the simulator's kernels.h has it.
struct SimtKernel {
    const char* name;
    int arguments;
    const size_t* sizes;
    void (*launch)(void** arguments, dim3 grid, dim3 block, size_t shared);
};

struct Stream;
struct Event {
    Stream* stream = nullptr;
    uint64_t place = 0;
    struct Graph* graph = nullptr;  // if it was recorded into one
    bool timed = false;
    std::shared_ptr<double> milliseconds{};  // of the device's clock, once the stream is past it
};
// Of a kernel, which may be handed the operation before, not run yet.
typedef std::function<void(const Operation& before)> KernelOperation;
struct Work {
    Operation operation;
    KernelOperation kernel{};
    bool early = false;
};
struct Item {
    Work work;
    Event wait;
};
struct Graph {
    std::vector<Work> works;
    struct Stream* origin = nullptr;
};
struct Stream {
    std::deque<Item> items;
    uint64_t issued = 0, done = 0;
    Graph* recording = nullptr;
    bool after_kernel = false;  // whether the last that came was one
};
struct Function {
    const SimtKernel* kernel;
    void (*start_before)(void (*run)(void*), void* argument);
    bool waits;
    unsigned shared = 48 << 10;
};
struct Module {
    void* library;
    std::map<std::string, Function> functions;
};

static std::recursive_mutex mutex;
static Stream default_stream;
static std::vector<Stream*> streams{&default_stream};
static std::map<Address, size_t> device_memory, pinned_memory;
static size_t allocated, pinned;
// What the device ran.
static struct {
    size_t kernels, fills, copies, products;
    size_t to_host;  // bytes that were copied to the host
    size_t on_host;  // kernels that were given an address of the host
    size_t early;    // kernels that were to start early
    std::vector<size_t> algorithms;  // products by each
} ran;
static double worked;  // milliseconds that the products took, as FAKE_ALGORITHMS has it
static int sticky;
static bool full;
static int context_object;
static thread_local void* current;

#define LOCK std::lock_guard<std::recursive_mutex> lock(mutex)
#define NEED_CONTEXT                            \
    LOCK;                                       \
    if (!current) return INVALID_CONTEXT;       \
    if (sticky) return sticky

void wrong(const std::string& what) {
    fprintf(stderr, "fake driver: %s\n", what.c_str());
    abort();
}

// The most that was in use.
static struct Peak {
    size_t device = 0, blocks = 0, pinned = 0;
    void note() {
        device = std::max(device, allocated), blocks = std::max(blocks, device_memory.size());
        pinned = std::max(pinned, ::pinned);
    }
    ~Peak() {
        FILE* file = getenv("FAKE_REPORT") ? fopen(getenv("FAKE_REPORT"), "w") : nullptr;
        if (!file) return;
        fprintf(file, "{\"device\": %zu, \"blocks\": %zu, \"pinned\": %zu, ", device, blocks, pinned);
        fprintf(file, "\"kernels\": %zu, \"fills\": %zu, \"copies\": %zu, \"products\": %zu, ", ran.kernels, ran.fills, ran.copies,
                ran.products);
        fprintf(file, "\"on_host\": %zu, \"early\": %zu, \"to_host\": %zu, ", ran.on_host, ran.early, ran.to_host);
        fprintf(file, "\"algorithms\": [");
        for (size_t i = 0; i < ran.algorithms.size(); i++) fprintf(file, "%s%zu", i ? ", " : "", ran.algorithms[i]);
        fprintf(file, "]}\n");
        fclose(file);
    }
} peak;

static bool inside(const std::map<Address, size_t>& memory, Address address, size_t bytes) {
    auto after = memory.upper_bound(address);
    if (after == memory.begin()) return false;
    --after;
    return address + bytes <= after->first + after->second;
}

bool device_owns(Address address, size_t bytes) {
    LOCK;
    return inside(device_memory, address, bytes);
}

static void check(Address address, size_t bytes, const char* what) {
    if (!device_owns(address, bytes)) wrong(std::string(what) + " outside of an allocation");
}

static Stream* stream_of(void* handle) { return handle ? static_cast<Stream*>(handle) : &default_stream; }

static void drain(Stream* stream, uint64_t until) {
    while (stream->done < until && !stream->items.empty()) {
        Item item = std::move(stream->items.front());
        stream->items.pop_front();
        if (item.wait.stream && item.wait.stream != stream) drain(item.wait.stream, item.wait.place);
        if (item.work.operation && !sticky) item.work.operation();
        stream->done++;
    }
}

static void drain_all() {
    for (size_t i = 0; i < streams.size(); i++) drain(streams[i], streams[i]->issued);
}

static bool recording() {
    return std::any_of(streams.begin(), streams.end(), [](Stream* s) { return s->recording != nullptr; });
}

static Operation counted(size_t& count, Operation operation) {
    return [&count, operation] {
        count++;
        operation();
    };
}

static int put(void* handle, Work work, Event wait = {}) {
    LOCK;
    Stream* stream = stream_of(handle);
    if (work.early && !stream->after_kernel) wrong("a kernel is to start before the end of what is no kernel before it");
    stream->after_kernel = bool(work.kernel);
    if (stream->recording) {
        if (wait.stream) return CAPTURE_UNSUPPORTED;
        if (work.operation || work.kernel) stream->recording->works.push_back(std::move(work));
        return OK;
    }
    if (work.kernel) {
        Operation before;
        if (work.early && !stream->items.empty()) before = std::exchange(stream->items.back().work.operation, nullptr);
        work.operation = [kernel = work.kernel, before] { kernel(before); };
    }
    stream->items.push_back({std::move(work), wait});
    stream->issued++;
    return OK;
}

static int put(void* handle, Operation operation) { return put(handle, Work{std::move(operation)}); }

int enqueue(void* stream, Operation operation) { return put(stream, counted(ran.products, std::move(operation))); }

void count_product(size_t algorithm, double milliseconds) {
    LOCK;
    if (ran.algorithms.size() <= algorithm) ran.algorithms.resize(algorithm + 1);
    ran.algorithms[algorithm]++;
    worked += milliseconds;
}

// ---- Context

API cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &context_object;
    return OK;
}
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxGetCurrent(void** context) {
    *context = current;
    return OK;
}
API cuCtxSetCurrent(void* context) {
    current = context;
    return OK;
}
API cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = number("FAKE_MEMORY", 1ull << 32);
    *free = *total - std::min(*total, allocated);
    return OK;
}
API cuGetErrorName(int, const char** text) {
    *text = "CUDA_ERROR";
    return OK;
}
API cuGetErrorString(int error, const char** text) {
    static thread_local char words[64];
    const char* said = error == ILLEGAL_ADDRESS  ? "an illegal memory access was encountered"
                       : error == CONTEXT_IS_LOST ? "context is destroyed"
                       : error == LAUNCH_FAILED   ? "unspecified launch failure"
                                                  : "error %d";
    snprintf(words, sizeof words, said, error);
    *text = words;
    return OK;
}

// ---- Streams and events

API cuStreamCreate(void** handle, unsigned) {
    NEED_CONTEXT;
    Stream* stream = new Stream;
    streams.push_back(stream);
    *handle = stream;
    return OK;
}
API cuStreamDestroy_v2(void* handle) {
    LOCK;
    Stream* stream = stream_of(handle);
    drain(stream, stream->issued);
    return OK;
}
API cuStreamSynchronize(void* handle) {
    NEED_CONTEXT;
    Stream* stream = stream_of(handle);
    if (stream->recording) return CAPTURE_UNSUPPORTED;
    drain(stream, stream->issued);
    return sticky;
}
API cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    NEED_CONTEXT;
    Stream* stream = stream_of(handle);
    Event event = *static_cast<Event*>(event_handle);
    if (!event.graph) return put(handle, Work{}, event);
    stream->after_kernel = false;
    // A stream that waits for the one that is recorded is recorded with it, until it is waited for in turn.
    if (!stream->recording) {
        stream->recording = event.graph;
    } else if (stream == event.graph->origin && event.stream != stream) {
        event.stream->recording = nullptr;
    }
    return OK;
}
API cuEventCreate(void** event, unsigned flags) {
    NEED_CONTEXT;
    Event* made = new Event;
    made->timed = !(flags & 2);
    *event = made;
    return OK;
}
API cuEventDestroy_v2(void* event) {
    delete static_cast<Event*>(event);
    return OK;
}
API cuEventRecord(void* handle, void* stream) {
    NEED_CONTEXT;
    Event* event = static_cast<Event*>(handle);
    event->stream = stream_of(stream);
    event->graph = event->stream->recording;
    event->stream->after_kernel = false;
    if (event->graph) return OK;
    auto time = event->milliseconds = std::make_shared<double>(-1);
    int result = put(stream, [time] {
        auto now = std::chrono::steady_clock::now().time_since_epoch();
        *time = getenv("FAKE_ALGORITHMS") ? worked : std::chrono::duration<double, std::milli>(now).count();
    });
    event->place = event->stream->issued;
    return result;
}
API cuEventQuery(void* handle) {
    NEED_CONTEXT;
    Event* event = static_cast<Event*>(handle);
    if (event->graph) return CAPTURED_EVENT;
    return event->stream && event->stream->done < event->place ? NOT_READY : OK;
}
API cuEventElapsedTime_v2(float* milliseconds, void* start_handle, void* end_handle) {
    NEED_CONTEXT;
    Event *start = static_cast<Event*>(start_handle), *end = static_cast<Event*>(end_handle);
    if (!start->timed || !end->timed || !start->milliseconds || !end->milliseconds) return INVALID_HANDLE;
    if (*start->milliseconds < 0 || *end->milliseconds < 0) return NOT_READY;
    *milliseconds = *end->milliseconds - *start->milliseconds;
    return OK;
}
API cuEventSynchronize(void* handle) {
    NEED_CONTEXT;
    Event* event = static_cast<Event*>(handle);
    if (event->graph) return CAPTURED_EVENT;
    if (event->stream) drain(event->stream, event->place);
    return sticky;
}

// ---- Memory

API cuMemAlloc_v2(Address* address, size_t bytes) {
    NEED_CONTEXT;
    if (recording()) return CAPTURE_UNSUPPORTED;
    if (!bytes) return INVALID_VALUE;
    if (full || allocated + bytes > number("FAKE_MEMORY", 1ull << 32)) return OUT_OF_MEMORY;
    void* memory;
    if (posix_memalign(&memory, 256, bytes)) return OUT_OF_MEMORY;
    memset(memory, 0xff, bytes);
    *address = reinterpret_cast<Address>(memory);
    device_memory[*address] = bytes;
    allocated += bytes;
    peak.note();
    return OK;
}
API cuMemFree_v2(Address address) {
    LOCK;
    drain_all();
    auto found = device_memory.find(address);
    if (found == device_memory.end()) wrong("memory freed that was not allocated");
    memset(reinterpret_cast<void*>(address), 0xff, found->second);
    allocated -= found->second;
    device_memory.erase(found);
    free(reinterpret_cast<void*>(address));
    return OK;
}
API cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    NEED_CONTEXT;
    if (posix_memalign(memory, 4096, bytes)) return OUT_OF_MEMORY;
    memset(*memory, 0xff, bytes);
    pinned_memory[reinterpret_cast<Address>(*memory)] = bytes;
    pinned += bytes;
    peak.note();
    return OK;
}
API cuMemFreeHost(void* memory) {
    LOCK;
    drain_all();
    auto found = pinned_memory.find(reinterpret_cast<Address>(memory));
    if (found == pinned_memory.end()) wrong("pinned memory freed that was not allocated");
    pinned -= found->second;
    pinned_memory.erase(found);
    free(memory);
    return OK;
}
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    NEED_CONTEXT;
    check(to, bytes, "copy to the device");
    if (!inside(pinned_memory, reinterpret_cast<Address>(from), bytes)) wrong("copy from memory that is not pinned");
    return put(stream, counted(ran.copies, [=] { memcpy(reinterpret_cast<void*>(to), from, bytes); }));
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    NEED_CONTEXT;
    check(from, bytes, "copy from the device");
    if (!inside(pinned_memory, reinterpret_cast<Address>(to), bytes)) wrong("copy to memory that is not pinned");
    return put(stream, counted(ran.copies, [=] { ran.to_host += bytes, memcpy(to, reinterpret_cast<void*>(from), bytes); }));
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
    NEED_CONTEXT;
    check(to, bytes, "copy");
    check(from, bytes, "copy");
    if (to < from + bytes && from < to + bytes) wrong("copy between places that overlap");
    return put(stream, counted(ran.copies, [=] { memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); }));
}
API cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* stream) {
    NEED_CONTEXT;
    check(to, bytes, "fill");
    return put(stream, counted(ran.fills, [=] { memset(reinterpret_cast<void*>(to), value, bytes); }));
}

// ---- Modules and launches

API cuModuleLoadData(void** handle, const void* image) {
    NEED_CONTEXT;
    const char* bytes = static_cast<const char*>(image);
    if (memcmp(bytes, IMAGE, sizeof IMAGE)) return NO_BINARY_FOR_GPU;
    uint64_t length;
    memcpy(&length, bytes + sizeof IMAGE, sizeof length);
    int file = memfd_create("kernels", 0);
    if (file < 0 || write(file, bytes + sizeof IMAGE + sizeof length, length) != (ssize_t)length) return INVALID_IMAGE;
    std::string path = "/proc/self/fd/" + std::to_string(file);
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) wrong(dlerror());
    *handle = new Module{library, {}};
    return OK;  // the file stays open: its number names the library to the loader
}
API cuModuleUnload(void*) { return OK; }
API cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
    NEED_CONTEXT;
    Module* module = static_cast<Module*>(module_handle);
    auto find = reinterpret_cast<const SimtKernel* (*)(const char*)>(dlsym(module->library, "simt_find"));
    const SimtKernel* kernel = find ? find(name) : nullptr;
    if (!kernel) return NOT_FOUND;
    auto start_before = reinterpret_cast<decltype(Function::start_before)>(dlsym(module->library, "simt_start_before"));
    bool waits = dlsym(module->library, "simt_waits");
    *handle = &(module->functions[name] = Function{kernel, start_before, waits});
    return OK;
}
API cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != 8 || value > 227 << 10) return INVALID_VALUE;
    static_cast<Function*>(function)->shared = value;
    return OK;
}
// Whether a kernel runs for the time that a variable names.
static bool reached(const char* variable, const char* kernel, int& runs) {
    const char* text = getenv(variable);
    const char* colon = text ? strchr(text, ':') : nullptr;
    if (!colon || std::string(text, colon) != kernel) return false;
    return ++runs == atoi(colon + 1);
}

// An argument of a kernel, aligned as any may be.
struct alignas(128) Part {
    char bytes[128];
};
struct Argument {
    size_t size;
    std::vector<Part> value;
    Argument(const void* from, size_t size) : size(size), value((size + sizeof(Part) - 1) / sizeof(Part)) {
        memcpy(value.data(), from, size);
    }
};

// Whether an argument is an address in memory of the host.
static bool on_host(const Argument& argument) {
    Address address;
    if (argument.size != sizeof address) return false;
    memcpy(&address, argument.value.data(), sizeof address);
    LOCK;
    return inside(pinned_memory, address, 1);
}

static int launch(void* handle, dim3 grid, dim3 block, unsigned shared, void* stream, void** arguments, bool early) {
    Function function = *static_cast<Function*>(handle);
    const SimtKernel* kernel = function.kernel;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return INVALID_VALUE;
    unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || shared > function.shared) return INVALID_VALUE;
    if (early && !function.waits) wrong(std::string(kernel->name) + " is to start early and was not built to wait");
    std::vector<Argument> values;
    for (int i = 0; i < kernel->arguments; i++) values.emplace_back(arguments[i], kernel->sizes[i]);
    auto run = [=](const Operation& before) mutable {
        static int failing, filling;
        if (reached("FAKE_FULL_OP", kernel->name, filling)) full = true;
        if (reached("FAKE_FAIL_OP", kernel->name, failing)) {
            if (before) before();
            sticky = number("FAKE_FAIL_CODE", ILLEGAL_ADDRESS);
            return;
        }
        std::vector<void*> pointers;
        for (auto& argument : values) pointers.push_back(argument.value.data());
        ran.kernels++;
        ran.early += early;
        ran.on_host += std::any_of(values.begin(), values.end(), on_host);
        if (before) {
            auto run = [](void* before) { (*static_cast<const Operation*>(before))(); };
            function.start_before(run, const_cast<Operation*>(&before));
        }
        kernel->launch(pointers.data(), grid, block, shared);
    };
    return put(stream, Work{nullptr, run, early});
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void**) {
    NEED_CONTEXT;
    return launch(function, {gx, gy, gz}, {bx, by, bz}, shared, stream, arguments, false);
}
struct LaunchAttribute {
    int id;
    alignas(8) int value;
    char rest[60];
};
struct LaunchConfig {
    dim3 grid, block;
    unsigned shared;
    void* stream;
    const LaunchAttribute* attributes;
    unsigned count;
};
API cuLaunchKernelEx(const LaunchConfig* config, void* function, void** arguments, void**) {
    NEED_CONTEXT;
    const int PROGRAMMATIC_STREAM_SERIALIZATION = 6;
    bool early = false;
    for (unsigned i = 0; i < config->count; i++) {
        if (config->attributes[i].id != PROGRAMMATIC_STREAM_SERIALIZATION) return INVALID_VALUE;
        early = config->attributes[i].value != 0;
    }
    return launch(function, config->grid, config->block, config->shared, config->stream, arguments, early);
}

// ---- Graphs

API cuStreamBeginCapture_v2(void* handle, int) {
    NEED_CONTEXT;
    if (!handle || stream_of(handle)->recording) return CAPTURE_UNSUPPORTED;
    stream_of(handle)->recording = new Graph;
    stream_of(handle)->recording->origin = stream_of(handle);
    stream_of(handle)->after_kernel = false;
    return OK;
}
API cuStreamEndCapture(void* handle, void** graph) {
    NEED_CONTEXT;
    Stream* stream = stream_of(handle);
    if (!stream->recording) return CAPTURE_UNMATCHED;
    *graph = stream->recording;
    stream->recording = nullptr;
    stream->after_kernel = false;
    for (Stream* other : streams)
        if (other->recording == *graph) return other->recording = nullptr, CAPTURE_UNJOINED;
    return OK;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new Graph(*static_cast<Graph*>(graph));
    return OK;
}
API cuGraphLaunch(void* executable, void* stream) {
    NEED_CONTEXT;
    for (Work& work : static_cast<Graph*>(executable)->works) put(stream, work);
    stream_of(stream)->after_kernel = false;
    return OK;
}
API cuGraphExecDestroy(void* executable) {
    delete static_cast<Graph*>(executable);
    return OK;
}
API cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return OK;
}
