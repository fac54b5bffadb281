// What kernels.cu needs of CUDA, for a host compiler: found in place of CUDA's own header of this name.
#pragma once

#include <math.h>

#define __global__
#define __device__

using __half = _Float16;  // binary16, rounded to nearest even, as on the device

struct Axis {
    unsigned x;
};

static Axis gridDim, blockDim, blockIdx, threadIdx;
