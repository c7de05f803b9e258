// libnvrtc.so.13 for tests: compiles a kernel's text with g++ and the simulator into a shared object, wrapped as a
// "cubin" that the fake driver loads. FAKE_NVRTC_INCLUDE is the directory of simt.h, FAKE_NVRTC_FLAGS further options.
#include "fake.h"

#include <unistd.h>

enum { OK = 0, COMPILATION = 6 };

struct Program {
    std::string source, log, image;
};

static bool identifier(char c) { return isalnum(c) || c == '_'; }

// The names of the kernels in a text without its line comments.
static std::vector<std::string> kernels(const std::string& source) {
    std::string text;
    for (size_t i = 0; i < source.size(); i++) {
        if (source.compare(i, 2, "//") == 0) i = std::min(source.find('\n', i), source.size() - 1);
        text += source[i];
    }
    std::vector<std::string> names;
    for (size_t at = text.find("__global__"); at != std::string::npos; at = text.find("__global__", at + 1)) {
        for (size_t open = text.find('(', at); open != std::string::npos; open = text.find('(', open + 1)) {
            size_t end = open;
            while (isspace(text[end - 1])) end--;
            size_t start = end;
            while (identifier(text[start - 1])) start--;
            std::string name = text.substr(start, end - start);
            if (name == "__launch_bounds__") continue;
            if (!name.empty()) {
                names.push_back(name);
                break;
            }
        }
    }
    return names;
}

static std::string content(const std::string& path) {
    std::string bytes;
    FILE* file = fopen(path.c_str(), "rb");
    if (!file) return bytes;
    char chunk[1 << 16];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, file)) > 0;) bytes.append(chunk, n);
    fclose(file);
    return bytes;
}

API nvrtcVersion(int* major, int* minor) {
    *major = 99, *minor = 0;
    return OK;
}
API nvrtcCreateProgram(void** program, const char* source, const char*, int, const char* const*, const char* const*) {
    *program = new Program{source, "", ""};
    return OK;
}
API nvrtcDestroyProgram(void** program) {
    delete static_cast<Program*>(*program);
    return OK;
}
API nvrtcCompileProgram(void* handle, int count, const char* const* options) {
    Program* program = static_cast<Program*>(handle);
    std::string directory = std::string(getenv("TMPDIR") ? getenv("TMPDIR") : P_tmpdir) + "/fake-nvrtc-XXXXXX";
    if (!mkdtemp(directory.data())) return COMPILATION;
    std::string base = directory + "/kernels";
    std::string text = "#include \"simt.h\"\n" + program->source + "\n#include \"kernels.h\"\nSIMT_KERNELS(";
    std::string separator;
    for (const std::string& name : kernels(program->source)) text += separator + "SIMT_KERNEL(" + name + ")", separator = ", ";
    text += ")\n";
    FILE* file = fopen((base + ".cpp").c_str(), "w");
    if (!file) return COMPILATION;
    fwrite(text.data(), 1, text.size(), file);
    fclose(file);
    const char* include = getenv("FAKE_NVRTC_INCLUDE");
    const char* flags = getenv("FAKE_NVRTC_FLAGS");
    std::string command = "g++ -O1 -std=c++17 -fPIC -shared -fvisibility=hidden -fno-gnu-unique -w -pthread -I";
    command += std::string(include ? include : ".") + " " + (flags ? flags : "");
    for (int i = 0; i < count; i++)
        if (!strncmp(options[i], "-D", 2)) command += std::string(" ") + options[i];
    command += " " + base + ".cpp -o " + base + ".so 2> " + base + ".log";
    // The library itself is on the path of what this starts; g++ needs none of it.
    int failed = system(("env -u LD_LIBRARY_PATH -u LD_PRELOAD " + command).c_str());
    program->log = content(base + ".log");
    std::string object = content(base + ".so");
    for (const char* suffix : {".cpp", ".so", ".log"}) unlink((base + suffix).c_str());
    rmdir(directory.c_str());
    if (failed || object.empty()) return COMPILATION;
    uint64_t length = object.size();
    program->image = std::string(IMAGE, sizeof IMAGE) + std::string(reinterpret_cast<char*>(&length), sizeof length) + object;
    return OK;
}
API nvrtcGetProgramLogSize(void* program, size_t* size) {
    *size = static_cast<Program*>(program)->log.size() + 1;
    return OK;
}
API nvrtcGetProgramLog(void* program, char* log) {
    strcpy(log, static_cast<Program*>(program)->log.c_str());
    return OK;
}
API nvrtcGetCUBINSize(void* program, size_t* size) {
    *size = static_cast<Program*>(program)->image.size();
    return OK;
}
API nvrtcGetCUBIN(void* handle, char* image) {
    Program* program = static_cast<Program*>(handle);
    memcpy(image, program->image.data(), program->image.size());
    return OK;
}
extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int error) {
    return error == COMPILATION ? "compilation failed" : "no error";
}
