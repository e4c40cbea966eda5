#include "tightloop/ops/head_gate/head_gate.h"

#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

struct GateCase {
  Shape h;
  int64_t heads, m;
};

TEST(HeadGate, CpuMatchesRefAndFiniteDifferences) {
  for (const GateCase& c :
       {GateCase{{1, 3}, 1, 3}, GateCase{{2, 5, 17}, 3, 12}, GateCase{{3, 70, 48}, 6, 32}}) {
    SCOPED_TRACE(to_string(c.h));
    check_op({.slots = {{"h", {DType::f32, c.h}},
                        {"w", {DType::f32, {c.heads, c.m}}, SlotRole::parameter, 0.3}},
              .build =
                  [](Builder& b) {
                    return std::vector<Value>{head_gate(b, b.slot("h"), b.slot("w"), 3.0)};
                  }},
             {.tolerance = 5e-6});
  }
}

// h is a temporary that something after the gate uses too: its gradient so far goes through the op.
TEST(HeadGate, AddsToTheGradientSoFar) {
  check_op({.slots = {{"x", {DType::f32, {4, 6, 20}}},
                      {"w", {DType::f32, {2, 12}}, SlotRole::parameter, 0.3}},
            .build =
                [](Builder& b) {
                  const Value h = mul(b, b.slot("x"), b.slot("x"));
                  const Value g = head_gate(b, h, b.slot("w"), 2.0);
                  return std::vector<Value>{g, mul(b, h, h)};
                }},
           {.tolerance = 5e-6});
}

TEST(HeadGateBwd, InPlaceAndForAnyThreadCountHasTheSameBits) {
  constexpr int64_t kRows{333}, kCols{24}, kHeads{4}, kM{12};
  std::vector<float> dg(kRows * kHeads), g(kRows * kHeads), h(kRows * kCols), w(kHeads * kM),
      dh_in(kRows * kCols);
  Rng rng(6, 0);
  for (std::vector<float>* v : {&dg, &g, &h, &w, &dh_in})
    for (float& x : *v) x = static_cast<float>(rng.normal());
  const Type gates{DType::f32, {kRows, kHeads}}, rows{DType::f32, {kRows, kCols}};
  const Type weights{DType::f32, {kHeads, kM}};
  const auto run = [&](int threads, bool in_place) {
    const int before = thread_count();
    set_thread_count(threads);
    std::vector<float> in = dh_in, out(h.size()), dw(w.size()), scratch(64 * w.size());
    std::vector<float>& dh = in_place ? in : out;
    head_gate_bwd({Device::cpu, std::as_writable_bytes(std::span(scratch))},
                  {.dg = {dg.data(), gates},
                   .g = {g.data(), gates},
                   .h = {h.data(), rows},
                   .w = {w.data(), weights},
                   .dh_in = {in.data(), rows},
                   .dh = {dh.data(), rows},
                   .dw = {dw.data(), weights},
                   .kappa = 3.0});
    set_thread_count(before);
    std::vector<float> result = dh;
    result.insert(result.end(), dw.begin(), dw.end());
    return result;
  };
  const std::vector<float> expected = run(1, false);
  for (const std::vector<float>& got : {run(6, false), run(3, true)})
    EXPECT_EQ(std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)), 0);
}

TEST(GatedAdd, CpuMatchesRefAndFiniteDifferences) {
  for (const Shape& shape : {Shape{1, 1}, Shape{2, 3, 2, 5}, Shape{2, 37, 6, 33}}) {
    SCOPED_TRACE(to_string(shape));
    Shape gates;
    for (int i = 0; i + 1 < shape.rank(); ++i) gates.push_back(shape[i]);
    check_op({.slots = {{"v", {DType::f32, shape}},
                        {"g", {DType::f32, gates}},
                        {"u", {DType::f32, shape}}},
              .build = [](Builder& b) {
                return std::vector<Value>{gated_add(b, b.slot("v"), b.slot("g"), b.slot("u"))};
              }});
  }
}

TEST(HeadGate, RefusesShapesThatDoNotFit) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"h", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"w", {DType::f32, {3, 5}}, SlotRole::parameter});
  slots->add({"v", {DType::f32, {2, 3, 4}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value h = b.slot("h"), w = b.slot("w"), v = b.slot("v");
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { head_gate(b, h, w, 2.0); }),
            "head_gate: w has 5 columns, but h has shape (2, 4)");
  EXPECT_EQ(testing::error_of(ErrorKind::usage, [&] { head_gate(b, v, h, 0.0); }),
            "head_gate: kappa is 0");
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { gated_add(b, v, h, v); }),
            "gated_add: g has shape (2, 4), expected (2, 3)");
}

}  // namespace
}  // namespace tightloop
