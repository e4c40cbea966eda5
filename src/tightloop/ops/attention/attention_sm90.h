#pragma once

#include "tightloop/core/exec.h"
#include "tightloop/ops/attention/attention.h"

/// The backward of bf16 attention by our own kernel for Hopper: heads of 128 elements.
namespace tightloop {

/// Whether attention_bwd_sm90() does it here: sm_90 and not --arch generic, q and k bf16 with heads
/// of 128 elements, fewer than 2^30 tokens and tiles.
bool attention_bwd_sm90_takes(const Type& q, const Type& k);

int64_t attention_bwd_sm90_scratch_bytes(const Type& q);

/// Tiles of 64 queries of all heads, and what a tile has in scratch: two statistics a query, dq in
/// f32, and a count; one count more serves all.
int64_t attention_sm90_query_tiles(const Shape& q);
constexpr int64_t kAttentionSm90TileBytes = (2 * 64 + 64 * 128) * 4 + 4;

/// attention_bwd() in 5 products, nothing of T x T in memory. dq is summed in f32 over tiles of 128
/// keys, the last first; dk and dv over tiles of 64 queries, the first first, one query head after
/// the other: always the same bits.
/// Enqueues; false, with nothing enqueued, where it is not taken, a tensor does not start at a
/// multiple of 16 bytes, or exec.scratch is too small.
bool attention_bwd_sm90(const Exec& exec, const AttentionBwd& args);

/// For tests and comparisons: with false nothing is taken from now on. Returns what was set.
bool set_sm90_attention(bool enabled);

}  // namespace tightloop
