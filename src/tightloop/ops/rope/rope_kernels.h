#pragma once

#include "tightloop/ops/rope/rope.h"

namespace tightloop {

void rope_cuda(const Exec& exec, const Rope& args);

}  // namespace tightloop
