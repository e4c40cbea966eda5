#include "tightloop/train/gemm_cache.h"

#include <cctype>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/core/log.h"
#include "tightloop/core/sha256.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostBytes = 16 << 20;

std::string checksum_of(const std::string& machine, const GemmChoices& choices) {
  std::string text = machine;
  for (const auto& [product, algorithm] : choices) text += "\n" + product + "\n" + algorithm;
  return Sha256().update(text).finish_hex();
}

std::string file_name(const std::string& machine) {
  std::string name;
  for (const char c : machine) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0)
      name += c;
    else if (!name.ends_with('-'))
      name += '-';
  }
  return name + ".json";
}

}  // namespace

std::string gemm_machine() {
  return fmt::format("{}, cuBLASLt {}", cuda::device_info().name, cublaslt_version());
}

std::string gemm_cache_text(const std::string& machine, const GemmChoices& choices) {
  OrderedJson json;
  json["format"] = 1;
  json["machine"] = machine;
  json["sha256"] = checksum_of(machine, choices);
  json["choices"] = choices;
  return json.dump(1) + "\n";
}

GemmChoices parse_gemm_cache(const std::string& text,
                             const std::string& machine,
                             const std::string& where) {
  const Json json = parse_json(text, where);
  const std::string made_on = get_string(json, "machine", where);
  if (made_on != machine)
    fail(ErrorKind::data, "{}: made on '{}', this is '{}'", where, made_on, machine);
  GemmChoices choices;
  for (const auto& [product, entry] : get_object(json, "choices", where).items()) {
    if (!entry.is_string()) fail(ErrorKind::data, "{}: choices: '{}' is no text", where, product);
    choices[product] = entry.get<std::string>();
  }
  if (get_string(json, "sha256", where) != checksum_of(machine, choices))
    fail(ErrorKind::data, "{}: damaged: its checksum is another", where);
  return choices;
}

GemmCache::GemmCache(const std::string& folder) : machine_(gemm_machine()) {
  path_ = (fs::path(folder) / "gemm" / file_name(machine_)).string();
  saved_ = gemm_choices_timed();
  time_gemm_choices();
  if (!fs::exists(path_)) return;
  try {
    adopt_gemm_choices(parse_gemm_cache(read_file(path_, kMostBytes), machine_, path_));
  } catch (const Error& e) {
    log(LogLevel::warning,
        fmt::format("{}; products are timed again and the file is replaced", e.message()));
  }
}

void GemmCache::save_if_new() {
  const int64_t timed = gemm_choices_timed();
  if (timed == saved_) return;
  saved_ = timed;
  try {
    make_directories(fs::path(path_).parent_path().string());
    write_file_atomically(path_, gemm_cache_text(machine_, known_gemm_choices()));
  } catch (const Error& e) {
    log(LogLevel::warning,
        fmt::format("the chosen algorithms are not kept for later runs: {}", e.message()));
  }
}

}  // namespace tightloop
