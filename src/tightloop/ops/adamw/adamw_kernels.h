#pragma once

#include "tightloop/ops/adamw/adamw.h"

namespace tightloop {

void adamw_ref(const Adamw& args);
void adamw_cpu(const Adamw& args);
void adamw_cuda(const Exec& exec, const Adamw& args);

}  // namespace tightloop
