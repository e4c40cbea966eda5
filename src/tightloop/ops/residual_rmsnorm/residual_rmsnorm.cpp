#include "tightloop/ops/residual_rmsnorm/residual_rmsnorm.h"

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/residual_rmsnorm/residual_rmsnorm_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void residual_rmsnorm_fwd(const Exec& exec, const ResidualRmsnormFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(residual_rmsnorm_fwd_cuda(exec, args));
  exec.device == Device::ref ? residual_rmsnorm_fwd_ref(args) : residual_rmsnorm_fwd_cpu(args);
}

void residual_rmsnorm_bwd(const Exec& exec, const ResidualRmsnormBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(residual_rmsnorm_bwd_cuda(exec, args));
  if (exec.device == Device::ref) return residual_rmsnorm_bwd_ref(args);
  residual_rmsnorm_bwd_cpu(args, reinterpret_cast<double*>(exec.scratch.data()));
}

namespace {

/// Where the outputs are: [s with both], [t with either, if asked for], h, rstd.
struct Layout {
  bool has_add, has_more, has_scale, wants_t;

  explicit Layout(const Attrs& attrs)
      : has_add(attrs.flag("has_add")),
        has_more(attrs.flag("has_more")),
        has_scale(attrs.flag("has_scale")),
        wants_t(attrs.flag("stores_t")) {}
  bool stores_s() const { return has_add && has_scale; }
  bool stores_t() const { return (has_add || has_scale) && wants_t; }
  size_t t() const { return stores_s() ? 1 : 0; }  // only when stored
  size_t h() const { return static_cast<size_t>(stores_s()) + static_cast<size_t>(stores_t()); }
  size_t rstd() const { return h() + 1; }
};

}  // namespace

ResidualRmsnormValues residual_rmsnorm(Builder& builder,
                                       Value x,
                                       Value y,
                                       Value z,
                                       const ScaledTerm& a,
                                       const ScaledTerm& b,
                                       const ResidualRmsnormOptions& options) {
  const Attrs attrs{{"ca", a.constant},
                    {"cb", b.constant},
                    {"ia", a.index},
                    {"ib", b.index},
                    {"eps", options.eps},
                    {"scale", options.scale},
                    {"has_add", static_cast<bool>(y)},
                    {"has_more", static_cast<bool>(options.u)},
                    {"has_scale", static_cast<bool>(z)},
                    {"stores_t", options.stores_t}};
  const Layout at(attrs);
  const std::vector<Value> out =
      builder.emit("residual_rmsnorm", {x, y, z, a.vector, b.vector, options.u}, attrs);
  const Value t = at.stores_t() ? out[at.t()] : (at.has_add ? Value{} : x);
  const Value s = at.stores_s() ? out[0] : (at.has_add ? t : x);
  return {s, t, out[at.h()], out[at.rstd()]};
}

namespace {

void expect_same(std::string_view op, std::string_view name, const Type& got, const Type& want) {
  expect_shape(op, name, got, want.shape);
  expect_dtype(op, name, got, want.dtype);
}

// residual_rmsnorm: inputs (x, y?, z?, a?, b?, u?) -> ([s], [t], h, rstd), see Layout. Attributes
// ca, cb, ia, ib, eps, scale, has_add (y is given), has_more (u is), has_scale (z is), stores_t.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs& attrs) {
  constexpr std::string_view kOp = "residual_rmsnorm";
  const Type& x = t.input(0);
  const Layout at(attrs);
  expect_float(kOp, "x", x);
  if (x.shape.rank() == 0) fail(ErrorKind::shape, "{}: x is a scalar, expected (..., cols)", kOp);
  const auto state = [&](size_t input) { return t.has_input(input) ? "given" : "absent"; };
  if (t.has_input(1) != at.has_add || t.has_input(5) != at.has_more ||
      t.has_input(2) != at.has_scale)
    fail(ErrorKind::shape, "{}: y is {}, has_add {}; u is {}, has_more {}; z is {}, has_scale {}",
         kOp, state(1), at.has_add, state(5), at.has_more, state(2), at.has_scale);
  if (at.has_more && !at.has_add) fail(ErrorKind::shape, "{}: u needs y", kOp);
  if (!at.wants_t && (!at.has_add || at.has_scale))
    fail(ErrorKind::shape, "{}: t can be left out with y and without z only", kOp);
  if (at.has_add) expect_same(kOp, "y", t.input(1), x);
  if (at.has_more) expect_same(kOp, "u", t.input(5), x);
  if (at.has_scale) expect_same(kOp, "z", t.input(2), x);
  if (t.has_input(3)) expect_factor(kOp, "a", t.input(3), "ia", attrs.integer("ia"));
  if (t.has_input(4)) expect_factor(kOp, "b", t.input(4), "ib", attrs.integer("ib"));
  std::vector<Type> out(at.h() + 1, x);
  out.push_back({statistics_dtype(x.dtype), {x.shape.rows()}});
  return out;
}

void run_fwd(const Exec& exec, const OpCall& c) {
  const Layout at(c.attrs);
  residual_rmsnorm_fwd(exec, {.x = c.input(0),
                              .y = c.input(1),
                              .u = c.input(5),
                              .z = c.input(2),
                              .a = c.input(3),
                              .b = c.input(4),
                              .s = at.stores_s() ? c.outputs[0] : TensorView{},
                              .t = at.stores_t() ? c.outputs[at.t()] : TensorView{},
                              .h = c.outputs[at.h()],
                              .rstd = c.outputs[at.rstd()],
                              .ca = c.attrs.number("ca"),
                              .cb = c.attrs.number("cb"),
                              .ia = c.attrs.integer("ia"),
                              .ib = c.attrs.integer("ib"),
                              .eps = c.attrs.number("eps"),
                              .scale = c.attrs.number("scale")});
}

Cost cost_fwd(const OpTypes& t, const Attrs& attrs) {
  const Layout at(attrs);
  const int64_t bytes = t.input(0).bytes(), elems = t.input(0).elems();
  const int64_t read = 1 + at.has_add + at.has_more + at.has_scale;
  return {read * bytes, static_cast<int64_t>(at.h() + 1) * bytes + t.outputs[at.rstd()].bytes(),
          (4 + at.has_add + at.has_more + 3 * at.has_scale) * elems};
}

void vjp(VjpContext& ctx) {
  const Op op = ctx.op();
  const Layout at(op.attrs);
  Builder& b = ctx.builder();
  if (!ctx.output_grad(at.h()))
    fail(ErrorKind::unsupported, "residual_rmsnorm: h is not used by the loss");
  const Value dt_in = at.stores_t() ? ctx.output_grad(at.t()) : Value{};
  const bool wants_a = at.has_scale && ctx.needs_grad(3);
  const bool wants_b = at.has_scale && ctx.needs_grad(4);
  const Value da = wants_a ? ctx.parameter_grad_to_add(3) : Value{};
  const Value db = wants_b ? ctx.parameter_grad_to_add(4) : Value{};
  const Value s = at.stores_s() ? op.outputs[0] : op.inputs[0];
  const bool fuse_z = at.has_scale && ctx.needs_grad(2) && !ctx.is_parameter(2);
  const Value dz_in = fuse_z ? ctx.grad_so_far(2) : Value{};
  const std::vector<Value> grads =
      b.emit("residual_rmsnorm_bwd",
             {ctx.output_grad(at.h()), op.outputs[at.h()], op.outputs[at.rstd()], dt_in,
              wants_a ? s : Value{}, wants_b ? op.inputs[2] : Value{},
              at.has_scale ? op.inputs[3] : Value{}, at.has_scale ? op.inputs[4] : Value{}, dz_in},
             {{"scale", op.attrs.number("scale")},
              {"has_scale", at.has_scale},
              {"ca", op.attrs.number("ca")},
              {"cb", op.attrs.number("cb")},
              {"ia", op.attrs.integer("ia")},
              {"ib", op.attrs.integer("ib")}},
             {da, db});
  if (fuse_z) {
    ctx.replace_grad(2, grads[1]);
  } else if (at.has_scale && ctx.needs_grad(2)) {
    ctx.add_grad(2, grads[1]);
  }
  Value ds = grads[0];
  const Value ds_in = at.stores_s() ? ctx.output_grad(0) : Value{};
  if (ds_in) ds = b.emit1("add", {ds_in, ds});
  if (ctx.needs_grad(0)) ctx.add_grad(0, ds);
  if (at.has_add && ctx.needs_grad(1)) ctx.add_grad(1, ds);
  if (at.has_more && ctx.needs_grad(5)) ctx.add_grad(5, ds);
}

// residual_rmsnorm_bwd: inputs (dh, h, rstd, dt_in?, s?, z?, a?, b?, dz_in?) -> (ds, dz) with
// has_scale, (ds) without; updates (da?, db?). Attributes scale, has_scale, ca, cb, ia, ib.
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs& attrs) {
  constexpr std::string_view kOp = "residual_rmsnorm_bwd";
  const Type& dh = t.input(0);
  expect_float(kOp, "dh", dh);
  expect_same(kOp, "h", t.input(1), dh);
  expect_shape(kOp, "rstd", t.input(2), {dh.shape.rows()});
  if (t.has_input(3)) expect_same(kOp, "dt_in", t.input(3), dh);
  if (t.has_input(4)) expect_same(kOp, "s", t.input(4), dh);
  if (t.has_input(5)) expect_same(kOp, "z", t.input(5), dh);
  if (t.has_input(6)) expect_factor(kOp, "a", t.input(6), "ia", attrs.integer("ia"));
  if (t.has_input(7)) expect_factor(kOp, "b", t.input(7), "ib", attrs.integer("ib"));
  if (t.has_input(8)) expect_same(kOp, "dz_in", t.input(8), dh);
  const bool has_scale = attrs.flag("has_scale");
  for (const size_t side : {size_t{0}, size_t{1}}) {
    if (!t.has_update(side)) continue;
    if (!has_scale || !t.has_input(4 + side) || !t.has_input(6 + side))
      fail(ErrorKind::shape, "{}: {}", kOp,
           side == 0 ? "da needs has_scale, s and a" : "db needs has_scale, z and b");
    expect_shape(kOp, side == 0 ? "da" : "db", t.update(side), t.input(6 + side).shape);
  }
  return has_scale ? std::vector<Type>{dh, dh} : std::vector<Type>{dh};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  const bool has_scale = c.attrs.flag("has_scale");
  residual_rmsnorm_bwd(exec, {.dh = c.input(0),
                              .h = c.input(1),
                              .rstd = c.input(2),
                              .dt_in = c.input(3),
                              .s = c.input(4),
                              .z = c.input(5),
                              .a = c.input(6),
                              .b = c.input(7),
                              .dz_in = c.input(8),
                              .ds = c.outputs[0],
                              .dz = has_scale ? c.outputs[1] : TensorView{},
                              .da = c.update(0),
                              .db = c.update(1),
                              .ca = c.attrs.number("ca"),
                              .cb = c.attrs.number("cb"),
                              .ia = c.attrs.integer("ia"),
                              .ib = c.attrs.integer("ib"),
                              .scale = c.attrs.number("scale")});
}

int64_t scratch_bwd(const OpTypes& t, const Attrs&) {
  if (!t.has_update(0) && !t.has_update(1)) return 0;
  return 2 * kResidualRmsnormBlocks * int64_t{sizeof(double)};
}

int64_t scratch_bwd_cuda(const OpTypes& t, const Attrs&) {
  if (!t.has_update(0) && !t.has_update(1)) return 0;
  return 2 * t.input(0).shape.rows() * int64_t{sizeof(float)};
}

Cost cost_bwd(const OpTypes& t, const Attrs& attrs) {
  const int64_t bytes = t.input(0).bytes(), elems = t.input(0).elems();
  const int64_t has_scale = attrs.flag("has_scale"), da = t.has_update(0), db = t.has_update(1);
  const int64_t read = 2 + t.has_input(3) + da + db + t.has_input(8);
  return {read * bytes + t.input(2).bytes(), (1 + has_scale) * bytes,
          (6 + t.has_input(3) + 2 * has_scale + t.has_input(8) + 2 * da + 2 * db) * elems};
}

const OpEntry kEntries[] = {
    {{.name = "residual_rmsnorm",
      .infer = infer_fwd,
      .vjp = vjp,
      .cost = cost_fwd,
      .inplace = {{0, 0}, {0, 1}, {1, 2}}},
     run_fwd},
    {{.name = "residual_rmsnorm_bwd",
      .infer = infer_bwd,
      .cost = cost_bwd,
      .inplace = {{0, 0}, {0, 3}, {1, 8}}},
     run_bwd,
     scratch_bwd,
     scratch_bwd_cuda},
};

}  // namespace

std::span<const OpEntry> residual_rmsnorm_ops() {
  return kEntries;
}

}  // namespace tightloop
