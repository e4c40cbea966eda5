#include "tightloop/ops/polar_express/polar_express.h"

#include <algorithm>

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/polar_express/polar_express_kernels.h"

namespace tightloop {

void polar_express(const Exec& exec, const PolarExpress& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(polar_express_cuda(exec, args));
  if (exec.device == Device::ref) return polar_express_ref(args);
  polar_express_cpu(args, exec.scratch);
}

Value polar_express(Builder& b, Value u, const PolarExpressOptions& options) {
  return b.emit1("polar_express", {u},
                 {{"steps", options.steps},
                  {"norm_factor", options.norm_factor},
                  {"row_equilibrate", options.row_equilibrate},
                  {"renormalize", options.renormalize}});
}

namespace {

PolarExpressOptions options_of(const Attrs& attrs) {
  return {.steps = attrs.integer("steps"),
          .norm_factor = attrs.number("norm_factor"),
          .row_equilibrate = attrs.flag("row_equilibrate"),
          .renormalize = attrs.flag("renormalize")};
}

// polar_express: inputs (u) -> (x). Attributes steps, norm_factor, row_equilibrate, renormalize.
std::vector<Type> infer(const OpTypes& t, const Attrs& attrs) {
  const Type& u = t.input(0);
  expect_rank("polar_express", "u", u, 2);
  expect_dtype("polar_express", "u", u, DType::f32);
  if (u.elems() == 0)
    fail(ErrorKind::shape, "polar_express: u has shape {}, expected elements", to_string(u.shape));
  const PolarExpressOptions options = options_of(attrs);
  if (options.steps < 1 || options.steps > static_cast<int64_t>(kPolarSteps.size()))
    fail(ErrorKind::usage, "polar_express: {} steps, expected 1 to {}", options.steps,
         kPolarSteps.size());
  if (!(options.norm_factor > 0.0))
    fail(ErrorKind::usage, "polar_express: norm_factor is {}, expected a positive number",
         options.norm_factor);
  return {u};
}

void run(const Exec& exec, const OpCall& c) {
  polar_express(exec, {.u = c.input(0), .x = c.outputs[0], .options = options_of(c.attrs)});
}

int64_t scratch(const OpTypes& t, const Attrs&) {
  return polar_express_scratch(t.input(0).shape);
}

int64_t scratch_cuda(const OpTypes& t, const Attrs&) {
  return PolarWorkspace::bytes(t.input(0).shape);
}

// The matrix is read and written once at least; each step is two products with it and one square.
Cost cost(const OpTypes& t, const Attrs& attrs) {
  const Shape& shape = t.input(0).shape;
  const int64_t side = std::min(shape[0], shape[1]);
  const int64_t step = 4 * side * t.input(0).elems() + 2 * side * side * side;
  return {t.input(0).bytes(), t.input(0).bytes(), attrs.integer("steps") * step};
}

const OpEntry kEntries[] = {
    {{.name = "polar_express", .infer = infer, .cost = cost}, run, scratch, scratch_cuda}};

}  // namespace

std::span<const OpEntry> polar_express_ops() {
  return kEntries;
}

}  // namespace tightloop
