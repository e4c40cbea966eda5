#include "tightloop/core/exec.h"

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/error.h"

namespace tightloop {

std::string_view name_of(Device device) {
  switch (device) {
    case Device::ref:
      return "ref";
    case Device::cpu:
      return "cpu";
    case Device::cuda:
      return "cuda";
  }
  return "unknown";
}

Device parse_device(std::string_view name) {
  if (name == "ref") return Device::ref;
  if (name == "cpu") return Device::cpu;
  if (name == "cuda") {
    cuda::expect_device();
    return Device::cuda;
  }
  fail(ErrorKind::usage, "unknown device '{}': expected cpu, cuda or ref", name);
}

}  // namespace tightloop
