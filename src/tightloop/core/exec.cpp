#include "tightloop/core/exec.h"

#include "tightloop/core/error.h"

namespace tightloop {

std::string_view name_of(Device device) {
  return device == Device::ref ? "ref" : "cpu";
}

Device parse_device(std::string_view name) {
  if (name == "ref") return Device::ref;
  if (name == "cpu") return Device::cpu;
  if (name == "cuda") fail(ErrorKind::unsupported, "this build has no CUDA device");
  fail(ErrorKind::usage, "unknown device '{}': expected cpu or ref", name);
}

}  // namespace tightloop
