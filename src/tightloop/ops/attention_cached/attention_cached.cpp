#include "tightloop/ops/attention_cached/attention_cached.h"

#include <algorithm>

#include "tightloop/ops/attention_cached/attention_cached_kernels.h"

namespace tightloop {

void attention_cached_run(const Exec& exec, const AttentionCached& args) {
  const int64_t pos = *args.pos.as<int32_t>(), tokens = args.q.shape()[1];
  if (pos < 0 || pos + tokens > args.k_cache.shape()[2])
    fail(ErrorKind::usage, "attention_cached: positions {} to {} are not in a cache of {}", pos,
         pos + tokens - 1, args.k_cache.shape()[2]);
  exec.device == Device::ref ? attention_cached_ref(args, pos)
                             : attention_cached_cpu(args, pos, exec.scratch);
}

Value attention_cached(Builder& b,
                       Value q,
                       Value k,
                       Value v,
                       Value pos,
                       Value k_cache,
                       Value v_cache,
                       int64_t window,
                       double softmax_scale) {
  return b.emit1("attention_cached", {q, k, v, pos},
                 {{"window", window}, {"softmax_scale", softmax_scale}}, {k_cache, v_cache});
}

namespace {

constexpr std::string_view kName = "attention_cached";

void expect_cache(std::string_view operand, const Type& cache, const Type& k, const Type& first) {
  expect_rank(kName, operand, cache, 4);
  expect_shape(kName, operand, cache, {k.shape[0], k.shape[2], first.shape[2], k.shape[3]});
  expect_dtype(kName, operand, cache, first.dtype);
}

// attention_cached: inputs (q, k, v, pos), updates (k_cache, v_cache) -> (o). Attributes window,
// softmax_scale.
std::vector<Type> infer(const OpTypes& t, const Attrs& attrs) {
  const Type &q = t.input(0), &k = t.input(1), &v = t.input(2), &cache = t.update(0);
  expect_rank(kName, "q", q, 4);
  expect_rank(kName, "k", k, 4);
  for (size_t i = 0; i < 3; ++i)
    expect_dtype(kName, std::string_view("qkv").substr(i, 1), t.input(i), DType::f32);
  expect_shape(kName, "k", k, {q.shape[0], q.shape[1], k.shape[2], q.shape[3]});
  expect_shape(kName, "v", v, k.shape);
  expect_shape(kName, "pos", t.input(3), {});
  expect_dtype(kName, "pos", t.input(3), DType::i32);
  if (q.elems() == 0 || k.elems() == 0)
    fail(ErrorKind::shape, "{}: q has shape {}, k {}: no dimension may be 0", kName,
         to_string(q.shape), to_string(k.shape));
  if (q.shape[2] % k.shape[2] != 0)
    fail(ErrorKind::shape, "{}: {} key/value heads, expected a divisor of {} query heads", kName,
         k.shape[2], q.shape[2]);
  expect_rank(kName, "k_cache", cache, 4);
  if (cache.dtype != DType::f32 && cache.dtype != DType::bf16)
    fail(ErrorKind::dtype, "{}: k_cache is {}, expected f32 or bf16", kName, name_of(cache.dtype));
  expect_cache("k_cache", cache, k, cache);
  expect_cache("v_cache", t.update(1), k, cache);
  if (cache.shape[2] < q.shape[1])
    fail(ErrorKind::shape, "{}: the cache holds {} positions, q has {} tokens", kName,
         cache.shape[2], q.shape[1]);
  if (attrs.integer("window") < 0)
    fail(ErrorKind::usage, "{}: window is {}, expected 0 or more", kName, attrs.integer("window"));
  if (!(attrs.number("softmax_scale") > 0.0))
    fail(ErrorKind::usage, "{}: softmax_scale is {}, expected a positive number", kName,
         attrs.number("softmax_scale"));
  return {q};
}

void run(const Exec& exec, const OpCall& c) {
  attention_cached_run(exec, {.q = c.input(0),
                              .k = c.input(1),
                              .v = c.input(2),
                              .pos = c.input(3),
                              .k_cache = c.update(0),
                              .v_cache = c.update(1),
                              .o = c.outputs[0],
                              .window = c.attrs.integer("window"),
                              .softmax_scale = c.attrs.number("softmax_scale")});
}

int64_t scratch(const OpTypes& t, const Attrs& attrs) {
  return attention_cached_scratch_bytes(t.input(0).shape, t.update(0).shape,
                                        attrs.integer("window"));
}

/// As if the cache were full: the last tokens see all positions their windows reach.
Cost cost(const OpTypes& t, const Attrs& attrs) {
  const Type &q = t.input(0), &k = t.input(1), &cache = t.update(0);
  const int64_t tokens = q.shape[1], size = cache.shape[2], window = attrs.integer("window");
  int64_t pairs = 0;
  for (int64_t i = size - tokens; i < size; ++i) pairs += std::min(i, window) + 1;
  const int64_t read = std::min(size, std::min(size, window) + tokens);
  const int64_t row_bytes = k.shape[0] * k.shape[2] * k.shape[3] * size_of(cache.dtype);
  return {q.bytes() + 2 * k.bytes() + 2 * (read - tokens) * row_bytes,
          q.bytes() + 2 * tokens * row_bytes, 4 * q.shape[0] * q.shape[2] * q.shape[3] * pairs};
}

const OpEntry kEntries[] = {
    {{.name = "attention_cached", .infer = infer, .cost = cost}, run, scratch},
};

}  // namespace

std::span<const OpEntry> attention_cached_ops() {
  return kEntries;
}

}  // namespace tightloop
