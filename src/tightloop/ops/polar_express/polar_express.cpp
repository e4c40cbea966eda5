#include "tightloop/ops/polar_express/polar_express.h"

#include <algorithm>

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/polar_express/polar_express_kernels.h"

namespace tightloop {

void polar_express(const Exec& exec, const PolarExpress& args) {
  TL_CHECK(args.u.size() == args.x.size());
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(polar_express_cuda(exec, args));
  for (size_t i = 0; i < args.u.size(); ++i) {
    const PolarMatrix one{args.u[i], args.x[i], args.options};
    if (exec.device == Device::ref)
      polar_express_ref(one);
    else
      polar_express_cpu(one, exec.scratch);
  }
}

std::vector<Value> polar_express(Builder& b,
                                 std::vector<Value> u,
                                 const PolarExpressOptions& options) {
  return b.emit("polar_express", std::move(u),
                {{"steps", options.steps},
                 {"norm_factor", options.norm_factor},
                 {"row_equilibrate", options.row_equilibrate},
                 {"renormalize", options.renormalize},
                 {"dtype", static_cast<int64_t>(options.dtype)}});
}

namespace {

PolarExpressOptions options_of(const Attrs& attrs) {
  return {.steps = attrs.integer("steps"),
          .norm_factor = attrs.number("norm_factor"),
          .row_equilibrate = attrs.flag("row_equilibrate"),
          .renormalize = attrs.flag("renormalize"),
          .dtype = static_cast<DType>(attrs.integer("dtype"))};
}

// polar_express: inputs (u, ...) -> (x, ...). Attributes steps, norm_factor, row_equilibrate,
// renormalize, dtype.
std::vector<Type> infer(const OpTypes& t, const Attrs& attrs) {
  if (t.inputs.empty() || t.inputs.size() > kPolarStack)
    fail(ErrorKind::shape, "polar_express: {} matrices, expected 1 to {}", t.inputs.size(),
         kPolarStack);
  const Type& u = t.input(0);
  expect_rank("polar_express", "u", u, 2);
  expect_dtype("polar_express", "u", u, DType::f32);
  if (u.elems() == 0)
    fail(ErrorKind::shape, "polar_express: u has shape {}, expected elements", to_string(u.shape));
  for (size_t i = 1; i < t.inputs.size(); ++i) {
    expect_dtype("polar_express", "u", t.input(i), DType::f32);
    expect_shape("polar_express", "u", t.input(i), u.shape);
  }
  const PolarExpressOptions options = options_of(attrs);
  if (options.steps < 1 || options.steps > static_cast<int64_t>(kPolarSteps.size()))
    fail(ErrorKind::usage, "polar_express: {} steps, expected 1 to {}", options.steps,
         kPolarSteps.size());
  if (!(options.norm_factor > 0.0))
    fail(ErrorKind::usage, "polar_express: norm_factor is {}, expected a positive number",
         options.norm_factor);
  if (options.dtype != DType::f32 && options.dtype != DType::bf16)
    fail(ErrorKind::dtype, "polar_express: dtype is {}, expected f32 or bf16",
         name_of(options.dtype));
  return std::vector<Type>(t.inputs.size(), u);
}

void run(const Exec& exec, const OpCall& c) {
  polar_express(exec, {.u = c.inputs, .x = c.outputs, .options = options_of(c.attrs)});
}

int64_t scratch(const OpTypes& t, const Attrs&) {
  return polar_express_scratch(t.input(0).shape);
}

int64_t scratch_cuda(const OpTypes& t, const Attrs& attrs) {
  return PolarStack(static_cast<int64_t>(t.inputs.size()), t.input(0).shape,
                    options_of(attrs).dtype)
      .bytes;
}

// A matrix is read and written once at least; each step is two products with it and one square.
Cost cost(const OpTypes& t, const Attrs& attrs) {
  const auto count = static_cast<int64_t>(t.inputs.size());
  const Shape& shape = t.input(0).shape;
  const int64_t side = std::min(shape[0], shape[1]);
  const int64_t step = 4 * side * t.input(0).elems() + 2 * side * side * side;
  const int64_t bytes = count * t.input(0).bytes();
  return {bytes, bytes, count * attrs.integer("steps") * step};
}

/// Every matrix may be overwritten by its factor.
std::vector<std::pair<int, int>> each_in_place() {
  std::vector<std::pair<int, int>> pairs;
  for (int i = 0; i < static_cast<int>(kPolarStack); ++i) pairs.emplace_back(i, i);
  return pairs;
}

const OpEntry kEntries[] = {
    {{.name = "polar_express", .infer = infer, .cost = cost, .inplace = each_in_place()},
     run,
     scratch,
     scratch_cuda}};

}  // namespace

std::span<const OpEntry> polar_express_ops() {
  return kEntries;
}

}  // namespace tightloop
