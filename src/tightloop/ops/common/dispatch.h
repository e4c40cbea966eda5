#pragma once

#include "tightloop/core/cuda_device.h"

/// Calls a kernel that exists only in builds with CUDA. In others no Exec names that device.
#ifdef TL_CUDA
#define TL_CUDA_KERNEL(call) call
#else
#define TL_CUDA_KERNEL(call) ::tightloop::cuda::expect_device()
#endif
