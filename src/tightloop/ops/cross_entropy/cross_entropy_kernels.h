#pragma once

#include "tightloop/ops/cross_entropy/cross_entropy.h"

namespace tightloop {

void cross_entropy_fwd_ref(const CrossEntropyFwd& args);
void cross_entropy_bwd_ref(const CrossEntropyBwd& args);
void cross_entropy_fwd_cpu(const CrossEntropyFwd& args);
void cross_entropy_bwd_cpu(const CrossEntropyBwd& args);
void cross_entropy_fwd_cuda(const Exec& exec, const CrossEntropyFwd& args);
void cross_entropy_bwd_cuda(const Exec& exec, const CrossEntropyBwd& args);

}  // namespace tightloop
