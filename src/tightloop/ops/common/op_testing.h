#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/rng.h"
#include "tightloop/ops/basic/basic.h"
#include "tightloop/ops/common/interpreter.h"
#include "tightloop/program/differentiate.h"

/// What every operation's test needs: CPU, and CUDA where there is such a device, against the
/// float64 reference, and the reference's gradients against finite differences.
namespace tightloop::testing {

/// One slot of a test Program and what it is filled with: normal(0, stddev), or for integer types
/// uniform in [0, below). Parameters get gradients; constants and inputs do not.
struct TestSlot {
  std::string name;
  Type type;
  SlotRole role = SlotRole::parameter;
  double stddev = 1.0;
  int64_t below = 1;
};

/// A small Program: slots, and a function that builds the operation under test and returns the
/// values to check. Every float output enters the loss Σ w·output with fixed random weights w.
struct TestProgram {
  std::vector<TestSlot> slots;
  std::function<std::vector<Value>(Builder&)> build;
};

/// cpu, and cuda where a device can be used.
inline std::vector<Device> tested_devices() {
  if (cuda::device_count() > 0) return {Device::cpu, Device::cuda};
  return {Device::cpu};
}

/// Those and the reference.
inline std::vector<Device> all_devices() {
  std::vector<Device> devices = tested_devices();
  devices.insert(devices.begin(), Device::ref);
  return devices;
}

struct OpTestOptions {
  /// Largest |cpu - ref| and |cuda - ref| / (norm-wise scale of the tensor) allowed; times
  /// sqrt(elements reduced).
  double tolerance = 2e-6;
  double fd_tolerance = 1e-6;  // relative to the largest gradient of the slot
  double fd_step = 1e-5;
  int fd_probes = 12;  // elements per parameter that are probed by finite differences
  bool gradients = true;
  uint64_t seed = 1;
  std::vector<Device> devices = tested_devices();
};

inline void fill_slots(const Interpreter& run, const TestProgram& test, uint64_t seed) {
  uint64_t stream = 0;
  for (const TestSlot& slot : test.slots) {
    Rng rng(seed, stream++);
    const TensorView t = run.slot(slot.name);
    for (int64_t i = 0; i < t.elems(); ++i) {
      const double x = is_float(slot.type.dtype)
                           ? slot.stddev * rng.normal()
                           : static_cast<double>(rng.below(static_cast<uint64_t>(slot.below)));
      // Both devices get the value as the declared type stores it.
      float stored = static_cast<float>(x);
      if (slot.type.dtype == DType::bf16) stored = to_float(to_bf16(stored));
      run.set(t, i, static_cast<double>(stored));
    }
  }
}

/// max |a-b| / max(|b|) over a tensor; infinite when either holds a NaN.
inline double scaled_error(const Interpreter& a,
                           const TensorView& x,
                           const Interpreter& b,
                           const TensorView& y) {
  double worst = 0.0, scale = 0.0;
  for (int64_t i = 0; i < x.elems(); ++i) {
    const double u = a.get(x, i), v = b.get(y, i);
    if (std::isnan(u) || std::isnan(v)) return HUGE_VAL;
    worst = std::max(worst, std::abs(u - v));
    scale = std::max(scale, std::abs(v));
  }
  return scale == 0.0 ? worst : worst / scale;
}

/// Runs the Program (with its backward) on every device: every output and every gradient must agree
/// with the reference's; those must agree with central differences.
inline void check_op(const TestProgram& test, const OpTestOptions& options = {}) {
  auto slots = std::make_shared<SlotTable>();
  for (const TestSlot& s : test.slots) slots->add({s.name, s.type, s.role});
  Program program("test", slots);
  Builder b(program, op_table());
  const std::vector<Value> outputs = test.build(b);

  Value loss;
  std::vector<std::pair<std::string, Type>> weights;
  if (options.gradients) {
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!is_float(b.type(outputs[i]).dtype)) continue;
      const std::string name = "loss_weight." + std::to_string(i);
      const bool narrow = b.type(outputs[i]).dtype == DType::bf16;
      const Value output = narrow ? cast(b, outputs[i], DType::f32) : outputs[i];
      slots->add({name, b.type(output), SlotRole::constant});
      weights.emplace_back(name, b.type(output));
      const Value term = sum(b, mul(b, output, b.slot(name)));
      loss = loss ? add(b, loss, term) : term;
    }
    differentiate(program, op_table(), loss, {});
  }
  program.validate();

  Interpreter ref(program, Device::ref);
  const auto fill = [&](const Interpreter& run) {
    fill_slots(run, test, options.seed);
    for (size_t i = 0; i < weights.size(); ++i) {
      Rng rng(options.seed + 1000, i);
      const TensorView t = run.slot(weights[i].first);
      for (int64_t j = 0; j < t.elems(); ++j)
        run.set(t, j, static_cast<double>(static_cast<float>(rng.normal())));
    }
  };
  fill(ref);
  ref.run();
  for (const Device device : options.devices) {
    SCOPED_TRACE(name_of(device));
    Interpreter run(program, device);
    fill(run);
    run.run();
    for (Value v : outputs)
      EXPECT_LE(scaled_error(run, run.view(v), ref, ref.view(v)), options.tolerance)
          << "output " << to_string(program.type(v));
    for (const Slot& slot : slots->all()) {
      if (slot.role != SlotRole::gradient) continue;
      EXPECT_LE(scaled_error(run, run.slot(slot.name), ref, ref.slot(slot.name)),
                4 * options.tolerance)
          << slot.name;
    }
  }
  if (!options.gradients) return;

  for (const TestSlot& slot : test.slots) {
    if (slot.role != SlotRole::parameter || !slots->find(grad_name(slot.name))) continue;
    const TensorView gradient = ref.slot(grad_name(slot.name));
    double scale = 1e-12;
    for (int64_t i = 0; i < gradient.elems(); ++i)
      scale = std::max(scale, std::abs(ref.get(gradient, i)));
    Interpreter probe(program, Device::ref);
    Rng rng(options.seed + 7, 0);
    for (int k = 0; k < options.fd_probes; ++k) {
      const auto i = static_cast<int64_t>(rng.below(static_cast<uint64_t>(gradient.elems())));
      const auto loss_at = [&](double shift) {
        fill(probe);
        const TensorView t = probe.slot(slot.name);
        probe.set(t, i, probe.get(t, i) + shift);
        probe.run();
        return probe.get(probe.view(loss), 0);
      };
      const double h = options.fd_step;
      const double numeric = (loss_at(h) - loss_at(-h)) / (2 * h);
      EXPECT_NEAR(ref.get(gradient, i), numeric, options.fd_tolerance * scale)
          << "d loss / d " << slot.name << "[" << i << "]";
    }
  }
}

/// The message of the Error that fn throws; fails the test when it throws none of that kind.
template <typename Fn>
std::string error_of(ErrorKind kind, Fn&& fn) {
  try {
    fn();
  } catch (const Error& e) {
    EXPECT_EQ(name_of(e.kind()), name_of(kind)) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return {};
}

}  // namespace tightloop::testing
