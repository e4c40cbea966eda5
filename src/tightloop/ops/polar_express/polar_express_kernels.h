#pragma once

#include <array>

#include "tightloop/ops/polar_express/polar_express.h"

namespace tightloop {

struct PolarCoefficients {
  double a, b, c;
};

/// One step's polynomial each; they are made for each other and used in this order.
constexpr std::array<PolarCoefficients, 5> kPolarSteps{{
    {8.156554524902461, -22.48329292557795, 15.878769915207462},
    {4.042929935166739, -2.808917465908714, 0.5000178451051316},
    {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
    {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
    {2.3465413258596377, -1.7097828382687081, 0.42323551169305323},
}};

void polar_express_ref(const PolarExpress& args);
/// scratch: polar_express_scratch(shape) bytes.
void polar_express_cpu(const PolarExpress& args, std::span<std::byte> scratch);
int64_t polar_express_scratch(const Shape& shape);

}  // namespace tightloop
