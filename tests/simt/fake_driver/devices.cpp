// The devices that there are, and what is asked of them before one is used.
#include "fake.h"

enum { OK = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101 };

API cuInit(unsigned) { return number("FAKE_DEVICES", 1) ? OK : NO_DEVICE; }
API cuDeviceGetCount(int* count) {
    *count = number("FAKE_DEVICES", 1);
    return OK;
}
API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal < (int)number("FAKE_DEVICES", 1) ? OK : INVALID_DEVICE;
}
API cuDriverGetVersion(int* version) {
    *version = 13000;
    return OK;
}
API cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, bytes, "%s", "Fake");
    return OK;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 75: *value = 9; break;  // compute capability
        case 76: *value = 0; break;
        case 16: *value = 2; break;  // multiprocessors
        case 115: *value = 0; break;  // memory pools
        default: return INVALID_VALUE;
    }
    return OK;
}
