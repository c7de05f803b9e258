// Tensor maps of matrices, as the simulator's tensor copies read them; maps that no kernel here is given are refused.
#include "../tensor_map.h"

#include "fake.h"

API cuTensorMapEncodeTiled(simt::TensorMap* to, unsigned type, unsigned rank, void* address, const uint64_t* dims,
                           const uint64_t* strides, const unsigned* box, const unsigned* element_strides, unsigned interleave,
                           unsigned swizzle, unsigned l2_promotion, unsigned fill) {
    enum { OK = 0, INVALID_VALUE = 1, FLOAT16 = 6, BFLOAT16 = 9, SWIZZLE_NONE = 0, SWIZZLE_128B = 3, MOST_PROMOTION = 3 };
    bool known = (type == FLOAT16 || type == BFLOAT16) && rank == 2 && element_strides[0] == 1 && element_strides[1] == 1;
    if (!known || interleave || fill || l2_promotion > MOST_PROMOTION) return INVALID_VALUE;
    if (swizzle != SWIZZLE_NONE && swizzle != SWIZZLE_128B) return INVALID_VALUE;
    Address start = reinterpret_cast<Address>(address);
    simt::TensorMap map{0, start, dims[0], dims[1], strides[0], box[0], box[1], 2, swizzle == SWIZZLE_128B};
    if (simt::encode(to, map)) return INVALID_VALUE;
    if (!device_owns(start, (dims[1] - 1) * strides[0] + dims[0] * map.element)) wrong("a tensor map of memory outside of an allocation");
    return OK;
}
