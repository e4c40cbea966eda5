#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Looks up rows of a table: y[n] = table[tokens[n]].
/// Shapes: tokens (...); table (V, C); y (..., C).
/// Types:  tokens i32; table f32 or bf16; y f32, on cuda also bf16; all floats float64 on the
///         reference device.
/// Memory: moves one row of the table and of y per token.
/// Errors: Error{shape, dtype}; Error{data} for a token outside 0..V-1, whose row of y is NaN on
///         cuda.
struct EmbeddingFwd {
  ConstTensorView tokens, table;
  TensorView y;
};
void embedding_fwd(const Exec& exec, const EmbeddingFwd& args);

/// Positions of tokens sorted by token, those of one token ascending: what the backwards of all
/// tables that the same tokens look into go by.
/// Shapes: tokens (...); order (N), with N tokens.
/// Types:  i32.
/// Errors: Error{data} for a token outside 0..vocab-1; on cuda such tokens come last.
struct TokenOrder {
  ConstTensorView tokens;
  TensorView order;
  int64_t vocab;
};
void token_order(const Exec& exec, const TokenOrder& args);

/// Backward: dtable[v] (+)= sum over tokens[n] = v, in the order of n, of dy[n].
/// Shapes: order (N), what token_order made of tokens.
/// Types:  dy as y; dtable f32.
/// `accumulate` false overwrites the whole table: rows without a token become 0.
/// Memory: scratch of V + 1 ints; on cuda a row for every 32 tokens.
/// Order:  bitwise repeatable for any number of threads: each row of the table has one owner. On
///         cuda a row that many tokens share is summed in parts of at most 64.
/// Errors: Error{data} for a token outside 0..V-1, which on cuda is left out.
struct EmbeddingBwd {
  ConstTensorView tokens, dy, order;
  TensorView dtable;
  bool accumulate;
};
void embedding_bwd(const Exec& exec, const EmbeddingBwd& args);

/// order of TokenOrder.
Value token_order(Builder& b, Value tokens, int64_t vocab);

/// y of EmbeddingFwd as f32 or, on cuda, bf16. The table's gradient goes to its gradient slot, in
/// f32; lookups of the same tokens share one token_order.
Value embedding(Builder& b, Value tokens, Value table, DType dtype = DType::f32);

}  // namespace tightloop
