#pragma once

#include "tightloop/ops/qknorm_rope/qknorm_rope.h"

namespace tightloop {

void qknorm_rope_fwd_cuda(const Exec& exec, const QknormRopeFwd& args);
void qknorm_rope_bwd_cuda(const Exec& exec, const QknormRopeBwd& args);

}  // namespace tightloop
