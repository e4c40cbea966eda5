#include "tightloop/ops/residual_rmsnorm/residual_rmsnorm.h"

#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

/// What is added, and where: x alone, x + y, scaled with z, or both; u too; t not stored.
struct Form {
  bool add, scale, more = false, stores_t = true;
};
constexpr Form kForms[] = {{false, false},
                           {true, false},
                           {false, true},
                           {true, true},
                           {true, false, true},
                           {true, true, true},
                           {true, false, false, false},
                           {true, false, true, false}};
std::string name_of_form(const Form& form) {
  return fmt::format("add {} scale {} more {} stores t {}", form.add, form.scale, form.more,
                     form.stores_t);
}

testing::TestProgram fused(const Shape& shape, Form form) {
  return {.slots = {{"x", {DType::f32, shape}},
                    {"y", {DType::f32, shape}},
                    {"z", {DType::f32, shape}},
                    {"a", {DType::f32, {3}}},
                    {"b", {DType::f32, {2}}},
                    {"u", {DType::f32, shape}}},
          .build = [form](Builder& b) {
            const auto out = residual_rmsnorm(
                b, b.slot("x"), form.add ? b.slot("y") : Value{},
                form.scale ? b.slot("z") : Value{},
                {.vector = form.scale ? b.slot("a") : Value{}, .index = 2, .constant = 0.5},
                {.vector = form.scale ? b.slot("b") : Value{}, .index = 1},
                {1e-5, 1.2, form.more ? b.slot("u") : Value{}, form.stores_t});
            std::vector<Value> values{out.h};
            if ((form.add || form.scale) && form.stores_t) values.push_back(out.t);
            if (form.add && form.scale) values.push_back(out.s);
            return values;
          }};
}

TEST(ResidualRmsnorm, CpuMatchesRefAndFiniteDifferences) {
  // Rows that a lane of cuda keeps 3 to 8 packs of, that a block takes, and that are too long to
  // keep.
  for (const Shape& shape :
       {Shape{2, 3}, Shape{2, 5, 33}, Shape{20, 192}, Shape{6, 384}, Shape{5, 512}, Shape{3, 640},
        Shape{5, 768}, Shape{3, 1000}, Shape{3, 3000}, Shape{2, 5000}}) {
    for (const Form form : kForms) {
      SCOPED_TRACE(to_string(shape) + " " + name_of_form(form));
      check_op(fused(shape, form), {.tolerance = 1e-5});
    }
  }
}

// z is a temporary with a gradient of its own already: the op adds to it in the same pass.
TEST(ResidualRmsnorm, AddsToTheGradientOfZSoFar) {
  check_op({.slots = {{"x", {DType::f32, {6, 20}}},
                      {"y", {DType::f32, {6, 20}}},
                      {"a", {DType::f32, {1}}}},
            .build =
                [](Builder& b) {
                  const Value z = mul(b, b.slot("x"), b.slot("y"));
                  const auto out =
                      residual_rmsnorm(b, b.slot("x"), b.slot("y"), z, {.vector = b.slot("a")},
                                       {.constant = 0.3}, {1e-5, 1.0});
                  return std::vector<Value>{out.h, out.s, mul(b, z, out.t)};
                }},
           {.tolerance = 1e-5});
}

// Only z has a learned factor, and nothing but the norm is read.
TEST(ResidualRmsnorm, OneLearnedFactor) {
  check_op({.slots = {{"x", {DType::f32, {7, 40}}},
                      {"z", {DType::f32, {7, 40}}},
                      {"b", {DType::f32, {2}}}},
            .build =
                [](Builder& b) {
                  const auto out =
                      residual_rmsnorm(b, b.slot("x"), {}, b.slot("z"), {},
                                       {.vector = b.slot("b"), .constant = -1.0}, {1e-5, 1.0});
                  return std::vector<Value>{out.h};
                }},
           {.tolerance = 1e-5});
}

/// A training Program written with the plain operations or with the fused one.
Program arm_program(Form form, bool fuse, const Shape& shape) {
  auto slots = std::make_shared<SlotTable>();
  for (const char* name : {"x", "y", "u", "z"}) slots->add({name, {DType::f32, shape}});
  slots->add({"a", {DType::f32, {3}}});
  slots->add({"b", {DType::f32, {2}}});
  slots->add({"weight", {DType::f32, shape}, SlotRole::constant});
  slots->add({"h", {DType::f32, shape}, SlotRole::output});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value x = b.slot("x"), y = b.slot("y"), z = b.slot("z"), a = b.slot("a"), v = b.slot("b");
  Value t, h;
  if (fuse) {
    const auto out =
        residual_rmsnorm(b, x, form.add ? y : Value{}, form.scale ? z : Value{},
                         {.vector = form.scale ? a : Value{}, .index = 1, .constant = 0.5},
                         {.vector = form.scale ? v : Value{}, .index = 0},
                         {1e-5, 1.2, form.more ? b.slot("u") : Value{}, form.stores_t});
    t = out.t, h = out.h;
  } else {
    t = form.add ? b.emit1("add", {x, y}) : x;
    if (form.more) t = b.emit1("add", {t, b.slot("u")});
    if (form.scale)
      t = b.emit1("scaled_add", {t, z, a, v},
                  {{"ca", 0.5}, {"cb", 1.0}, {"ia", int64_t{1}}, {"ib", int64_t{0}}});
    h = b.emit("rmsnorm", {t, Value{}}, {{"eps", 1e-5}, {"scale", 1.2}})[0];
  }
  store(b, h, b.slot("h"), false);
  Value loss = sum(b, mul(b, h, b.slot("weight")));
  if (form.stores_t) loss = add(b, loss, sum(b, mul(b, t, t)));
  differentiate(program, op_table(), loss, {});
  return program;
}

TEST(ResidualRmsnorm, HasTheBitsOfTheUnfusedOperations) {
  const Shape shape{37, 100};
  for (const Form form : kForms) {
    SCOPED_TRACE(name_of_form(form));
    const Program plain = arm_program(form, false, shape), fuse = arm_program(form, true, shape);
    Interpreter one(plain, Device::cpu), two(fuse, Device::cpu);
    for (const char* name : {"x", "y", "u", "z", "a", "b", "weight"}) {
      Rng rng(11, static_cast<uint64_t>(name[0]));
      const TensorView from = one.slot(name), to = two.slot(name);
      for (int64_t i = 0; i < from.elems(); ++i) {
        const auto v = static_cast<double>(static_cast<float>(rng.normal()));
        one.set(from, i, v), two.set(to, i, v);
      }
    }
    one.run(), two.run();
    std::vector<std::string> exact{"h", "grad.x"};
    if (form.add) exact.push_back("grad.y");
    if (form.more) exact.push_back("grad.u");
    if (form.scale) exact.push_back("grad.z");
    for (const std::string& name : exact) {
      const TensorView p = one.slot(name), q = two.slot(name);
      EXPECT_EQ(std::memcmp(p.data, q.data, static_cast<size_t>(p.bytes())), 0) << name;
    }
    if (!form.scale) continue;
    // Sums over other blocks: equal to rounding.
    for (const char* name : {"grad.a", "grad.b"}) {
      EXPECT_LE(testing::scaled_error(one, one.slot(name), two, two.slot(name)), 1e-6) << name;
    }
  }
}

TEST(ResidualRmsnormBwd, SameBitsForAnyThreadCount) {
  const Program program = arm_program({true, true}, true, {301, 40});
  const auto run = [&](int threads) {
    const int before = thread_count();
    set_thread_count(threads);
    Interpreter it(program, Device::cpu);
    for (const char* name : {"x", "y", "u", "z", "a", "b", "weight"}) {
      Rng rng(12, static_cast<uint64_t>(name[0]));
      const TensorView t = it.slot(name);
      for (int64_t i = 0; i < t.elems(); ++i) it.set(t, i, rng.normal());
    }
    it.run();
    set_thread_count(before);
    std::vector<double> all;
    for (const char* name : {"grad.x", "grad.z", "grad.a", "grad.b"}) {
      const TensorView t = it.slot(name);
      for (int64_t i = 0; i < t.elems(); ++i) all.push_back(it.get(t, i));
    }
    return all;
  };
  EXPECT_EQ(run(1), run(6));
}

/// Forward and backward in bf16 on cuda, twice, against the reference; each from slots of its own,
/// so that nothing but its results is rounded.
void check_bf16_on_cuda(const Shape& shape, Form form) {
  SCOPED_TRACE(to_string(shape) + " " + name_of_form(form));
  testing::TestProgram test;
  for (const char* name : {"x", "y", "u", "z", "dh", "h", "dt_in", "s", "dz_in"})
    test.slots.push_back({name, {DType::bf16, shape}});
  test.slots.push_back({"rstd", {DType::f32, {shape.rows()}}});
  for (const char* name : {"a", "b", "da", "db"}) test.slots.push_back({name, {DType::f32, {3}}});
  auto slots = std::make_shared<SlotTable>();
  for (const auto& slot : test.slots) slots->add({slot.name, slot.type, slot.role});
  Program program("p", slots);
  Builder b(program, op_table());
  const auto if_scaled = [&](const char* name) { return form.scale ? b.slot(name) : Value{}; };
  const auto out =
      residual_rmsnorm(b, b.slot("x"), form.add ? b.slot("y") : Value{}, if_scaled("z"),
                       {.vector = if_scaled("a"), .index = 2, .constant = 0.5},
                       {.vector = if_scaled("b"), .index = 1},
                       {1e-5, 1.2, form.more ? b.slot("u") : Value{}, form.stores_t});
  std::vector<Value> results{out.h};
  if ((form.add || form.scale) && form.stores_t) results.push_back(out.t);
  if (form.add && form.scale) results.push_back(out.s);
  const std::vector<Value> grads =
      b.emit("residual_rmsnorm_bwd",
             {b.slot("dh"), b.slot("h"), b.slot("rstd"), form.add ? b.slot("dt_in") : Value{},
              if_scaled("s"), if_scaled("z"), if_scaled("a"), if_scaled("b"),
              form.add ? if_scaled("dz_in") : Value{}},
             {{"scale", 1.2},
              {"has_scale", form.scale},
              {"ca", 0.5},
              {"cb", 1.0},
              {"ia", int64_t{2}},
              {"ib", int64_t{1}}},
             {if_scaled("da"), if_scaled("db")});
  results.insert(results.end(), grads.begin(), grads.end());
  Interpreter ref(program, Device::ref), one(program, Device::cuda), two(program, Device::cuda);
  for (const Interpreter* run : {&ref, &one, &two}) testing::fill_slots(*run, test, 5);
  ref.run(), one.run(), two.run();
  const auto expect_near = [&](const TensorView& x, const TensorView& y, const TensorView& truth,
                               double tolerance) {
    EXPECT_LE(testing::scaled_error(one, x, ref, truth), tolerance);
    EXPECT_EQ(std::memcmp(x.data, y.data, static_cast<size_t>(x.bytes())), 0);
  };
  const double tolerance = shape.cols() > 8192 ? 8e-3 : 4e-3;  // h of a rounded t in long rows
  for (const Value v : results) expect_near(one.view(v), two.view(v), ref.view(v), tolerance);
  for (const char* name : {"da", "db"})
    expect_near(one.slot(name), two.slot(name), ref.slot(name), 1e-3);  // terms of both signs
}

// Rows that a lane keeps 3, 4, 5, 6 and 8 packs of 8 elements of, that a block takes, that are too
// long to keep, and of no whole packs; the last rows leave a block of warps short.
TEST(ResidualRmsnorm, Bf16OnCudaIsCloseToRefAndRepeatsItsBits) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  for (const int64_t cols : {768, 1000, 1280, 1288, 1536, 2048, 3000, 9000, 770}) {
    for (const Form form : kForms) check_bf16_on_cuda({7, cols}, form);
  }
}

TEST(ResidualRmsnorm, InPlaceGivesTheSameBits) {
  constexpr int64_t kRows{7}, kCols{45}, kCount{kRows * kCols};
  std::vector<std::vector<float>> in(6, std::vector<float>(kCount));
  Rng rng(13, 0);
  for (std::vector<float>& v : in)
    for (float& e : v) e = static_cast<float>(rng.normal());
  const Type all{DType::f32, {kRows, kCols}}, rows{DType::f32, {kRows}};
  const auto bytes = static_cast<size_t>(kCount) * sizeof(float);
  std::vector<float> rstd(kRows, 0.7f);

  std::vector<float> s(kCount), t(kCount), h(kCount);
  std::vector<float> x = in[0], y = in[1], z = in[2];
  const auto forward = [&](std::vector<float>& s_to, std::vector<float>& t_to) {
    residual_rmsnorm_fwd({}, {.x = {x.data(), all},
                              .y = {y.data(), all},
                              .z = {z.data(), all},
                              .a = {},
                              .b = {},
                              .s = {s_to.data(), all},
                              .t = {t_to.data(), all},
                              .h = {h.data(), all},
                              .rstd = {rstd.data(), rows},
                              .ca = 0.5,
                              .cb = 0.3,
                              .eps = 1e-5});
  };
  forward(s, t);
  const std::vector<float> expected_h = h;
  forward(y, z);  // s over y, t over z
  EXPECT_EQ(std::memcmp(s.data(), y.data(), bytes), 0);
  EXPECT_EQ(std::memcmp(t.data(), z.data(), bytes), 0);
  EXPECT_EQ(std::memcmp(h.data(), expected_h.data(), bytes), 0);

  // h of a sum that is not stored, over x.
  std::vector<float> x_or_h = in[0];
  const auto sum_alone = [&](std::vector<float>& h_to) {
    residual_rmsnorm_fwd({}, {.x = {x_or_h.data(), all},
                              .y = {in[1].data(), all},
                              .u = {in[2].data(), all},
                              .h = {h_to.data(), all},
                              .rstd = {rstd.data(), rows},
                              .eps = 1e-5});
  };
  sum_alone(h);
  sum_alone(x_or_h);
  EXPECT_EQ(std::memcmp(h.data(), x_or_h.data(), bytes), 0);
  forward(s, t);  // what the backward reads

  std::vector<float> dh = in[3], dt_in = in[4], dz_in = in[5], ds(kCount), dz(kCount);
  const auto backward = [&](std::vector<float>& ds_to, std::vector<float>& dz_to) {
    residual_rmsnorm_bwd({}, {.dh = {dh.data(), all},
                              .h = {h.data(), all},
                              .rstd = {rstd.data(), rows},
                              .dt_in = {dt_in.data(), all},
                              .s = {},
                              .z = {},
                              .a = {},
                              .b = {},
                              .dz_in = {dz_in.data(), all},
                              .ds = {ds_to.data(), all},
                              .dz = {dz_to.data(), all},
                              .da = {},
                              .db = {},
                              .ca = 0.5,
                              .cb = 0.3});
  };
  backward(ds, dz);
  const std::vector<float> kept = dz_in;
  backward(dh, dz_in);  // ds over dh, dz over dz_in
  EXPECT_EQ(std::memcmp(ds.data(), dh.data(), bytes), 0);
  EXPECT_EQ(std::memcmp(dz.data(), dz_in.data(), bytes), 0);
  dh = in[3], dz_in = kept;
  backward(dt_in, dz);  // ds over dt_in
  EXPECT_EQ(std::memcmp(ds.data(), dt_in.data(), bytes), 0);
}

TEST(ResidualRmsnorm, RefusesOperandsThatDoNotFit) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"y", {DType::f32, {2, 3}}, SlotRole::parameter});
  slots->add({"a", {DType::f32, {2}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value x = b.slot("x"), y = b.slot("y"), a = b.slot("a");
  EXPECT_EQ(
      testing::error_of(ErrorKind::shape, [&] { residual_rmsnorm(b, x, y, {}, {}, {}, {1e-6}); }),
      "residual_rmsnorm: y has shape (2, 3), expected (2, 4)");
  EXPECT_EQ(testing::error_of(
                ErrorKind::shape,
                [&] { residual_rmsnorm(b, x, {}, x, {.vector = a, .index = 2}, {}, {1e-6}); }),
            "residual_rmsnorm: ia is 2, but a has 2 elements");
  const auto alone = [&](bool has_add, bool stores_t) {
    return testing::error_of(ErrorKind::shape, [&] {
      b.emit("residual_rmsnorm", {x},
             {{"has_add", has_add},
              {"has_more", false},
              {"has_scale", false},
              {"stores_t", stores_t}});
    });
  };
  EXPECT_EQ(
      alone(true, true),
      "residual_rmsnorm: y is absent, has_add true; u is absent, has_more false; z is absent, "
      "has_scale false");
  EXPECT_EQ(alone(false, false), "residual_rmsnorm: t can be left out with y and without z only");
  EXPECT_EQ(
      testing::error_of(ErrorKind::shape,
                        [&] { residual_rmsnorm(b, x, {}, {}, {}, {}, {.eps = 1e-6, .u = x}); }),
      "residual_rmsnorm: u needs y");
}

}  // namespace
}  // namespace tightloop
