#include "tightloop/ops/sample/sample.h"

#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/sample/sample_kernels.h"

namespace tightloop {

void sample_run(const Exec& exec, const Sample& args) {
  exec.device == Device::ref ? sample_ref(args) : sample_cpu(args, exec.scratch);
}

void expect_finite_logit(double largest, int64_t row) {
  if (!std::isfinite(largest))
    fail(ErrorKind::numeric, "sample: the largest logit of row {} is {}, expected a finite number",
         row, largest);
}

Value sample(Builder& b, Value logits, Value uniform, const SampleOptions& options) {
  return b.emit1("sample", {logits, uniform},
                 {{"vocab", options.vocab},
                  {"temperature", options.temperature},
                  {"top_k", options.top_k},
                  {"top_p", options.top_p},
                  {"min_p", options.min_p}});
}

namespace {

SampleOptions options_of(const Attrs& attrs) {
  return {.vocab = attrs.integer("vocab"),
          .temperature = attrs.number("temperature"),
          .top_k = attrs.integer("top_k"),
          .top_p = attrs.number("top_p"),
          .min_p = attrs.number("min_p")};
}

void expect_option(bool holds, std::string_view name, double got, std::string_view want) {
  if (!holds) fail(ErrorKind::usage, "sample: {} is {}, expected {}", name, got, want);
}

// sample: inputs (logits, uniform) -> (token). Attributes vocab, temperature, top_k, top_p, min_p.
std::vector<Type> infer(const OpTypes& t, const Attrs& attrs) {
  const Type& logits = t.input(0);
  expect_rank("sample", "logits", logits, 2);
  expect_dtype("sample", "logits", logits, DType::f32);
  expect_shape("sample", "uniform", t.input(1), {logits.shape[0]});
  expect_dtype("sample", "uniform", t.input(1), DType::f32);
  const SampleOptions o = options_of(attrs);
  if (o.vocab < 1 || o.vocab > logits.shape[1])
    fail(ErrorKind::shape, "sample: vocab is {}, expected 1 to {} (columns of logits)", o.vocab,
         logits.shape[1]);
  expect_option(o.temperature >= 0.0 && std::isfinite(o.temperature), "temperature", o.temperature,
                "0 or more");
  expect_option(o.top_k >= 0, "top_k", static_cast<double>(o.top_k), "0 or more");
  expect_option(o.top_p > 0.0 && o.top_p <= 1.0, "top_p", o.top_p, "more than 0 and at most 1");
  expect_option(o.min_p >= 0.0 && o.min_p <= 1.0, "min_p", o.min_p, "0 to 1");
  return {{DType::i32, {logits.shape[0]}}};
}

void run(const Exec& exec, const OpCall& c) {
  sample_run(exec, {.logits = c.input(0),
                    .uniform = c.input(1),
                    .token = c.outputs[0],
                    .options = options_of(c.attrs)});
}

int64_t scratch(const OpTypes&, const Attrs& attrs) {
  return int64_t{thread_count()} * attrs.integer("vocab") *
         static_cast<int64_t>(sizeof(double) + sizeof(int32_t));
}

Cost cost(const OpTypes& t, const Attrs& attrs) {
  const int64_t rows = t.input(0).shape[0], vocab = attrs.integer("vocab");
  return {rows * (vocab + 1) * int64_t{sizeof(float)}, t.outputs[0].bytes(), 3 * rows * vocab};
}

const OpEntry kEntries[] = {
    {{.name = "sample", .infer = infer, .cost = cost}, run, scratch},
};

}  // namespace

std::span<const OpEntry> sample_ops() {
  return kEntries;
}

}  // namespace tightloop
