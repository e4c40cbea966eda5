#include "tightloop/ops/op_template/op_template.h"

#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(OpTemplate, CpuMatchesRefAndFiniteDifferences) {
  for (const Shape& shape : {Shape{1}, Shape{2, 3}, Shape{4, 5, 97}, Shape{130, 768}}) {
    SCOPED_TRACE(to_string(shape));
    check_op({.slots = {{"x", {DType::f32, shape}}}, .build = [](Builder& b) {
                return std::vector<Value>{op_template(b, b.slot("x"), 0.5)};
              }});
  }
}

TEST(OpTemplate, RefusesIntegers) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::i32, {4}}, SlotRole::input});
  Program program("p", slots);
  Builder b(program, op_table());
  const std::string message =
      testing::error_of(ErrorKind::dtype, [&] { op_template(b, b.slot("x")); });
  EXPECT_EQ(message.rfind("op_template: x ", 0), 0u) << message;
}

}  // namespace
}  // namespace tightloop
