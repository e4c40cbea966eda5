#pragma once

#include "tightloop/ops/embedding/embedding.h"

namespace tightloop {

void embedding_fwd_ref(const EmbeddingFwd& args);
void embedding_bwd_ref(const EmbeddingBwd& args);
void embedding_fwd_cpu(const EmbeddingFwd& args);
/// scratch: V + 1 + tokens int32.
void embedding_bwd_cpu(const EmbeddingBwd& args, int32_t* scratch);

}  // namespace tightloop
