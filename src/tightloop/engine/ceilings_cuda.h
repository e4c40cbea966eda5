#pragma once

#include "tightloop/engine/ceilings.h"

namespace tightloop {

/// measure_ceilings() on the CUDA device: streams over 2 GiB, far more than its caches, and a
/// square product of 8192 through the library that serves plain products. Takes about a quarter of
/// a second. Error{oom, device}.
Ceilings measure_ceilings_cuda(DType dtype);

}  // namespace tightloop
