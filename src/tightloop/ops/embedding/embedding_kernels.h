#pragma once

#include "tightloop/ops/embedding/embedding.h"

namespace tightloop {

// The backward on cuda sorts and sums in parts that depend on the shapes alone.
constexpr int64_t kEmbeddingChunk = 2048;  // positions a block sorts
constexpr int64_t kEmbeddingDigits = 256;  // of a token, in one pass of the sort
constexpr int64_t kEmbeddingPiece = 64;    // sorted positions a block sums

constexpr int64_t embedding_chunks(int64_t tokens) {
  return (tokens + kEmbeddingChunk - 1) / kEmbeddingChunk;
}
constexpr int64_t embedding_pieces(int64_t tokens) {
  return (tokens + kEmbeddingPiece - 1) / kEmbeddingPiece;
}

void embedding_fwd_ref(const EmbeddingFwd& args);
void token_order_ref(const TokenOrder& args);
void embedding_bwd_ref(const EmbeddingBwd& args);
void embedding_fwd_cpu(const EmbeddingFwd& args);
/// scratch: vocab + 1 int32.
void token_order_cpu(const TokenOrder& args, int32_t* scratch);
/// scratch: V + 1 int32.
void embedding_bwd_cpu(const EmbeddingBwd& args, int32_t* scratch);
void embedding_fwd_cuda(const Exec& exec, const EmbeddingFwd& args);
/// exec.scratch: one int32 a token, then one a digit and chunk.
void token_order_cuda(const Exec& exec, const TokenOrder& args);
/// exec.scratch: two rows of dtable (f32) a piece.
void embedding_bwd_cuda(const Exec& exec, const EmbeddingBwd& args);

}  // namespace tightloop
