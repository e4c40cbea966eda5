#pragma once

#include "tightloop/ops/sample/sample.h"

namespace tightloop {

void sample_ref(const Sample& args);
/// scratch: per thread `vocab` doubles and `vocab` int32.
void sample_cpu(const Sample& args, std::span<std::byte> scratch);

/// Error{numeric} for a row whose largest logit is NaN or infinite.
void expect_finite_logit(double largest, int64_t row);

}  // namespace tightloop
