#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace tightloop {

/// Which of cuBLASLt's algorithms serves a product on cuda, by what the choice depends on (layouts,
/// types, alignment). Of these two texts the first is a list of numbers, the second the algorithm's
/// descriptor in hexadecimal, which the library's same version takes back.
using GemmChoices = std::map<std::string, std::string>;

/// Of cuBLASLt, as it counts (130100 is 13.1.0); 0 in a build without CUDA.
int64_t cublaslt_version();

/// From now on a product without a choice is timed: the fastest of the library's first candidates
/// is chosen. Before, and where there is no memory for it, the library's first one serves.
void time_gemm_choices();
/// Choices to be made from now on for products that no choice has been made for. What they hold is
/// checked when it is used: a text that is no algorithm for the product counts as none. `used`: by
/// the process that this one continues.
void adopt_gemm_choices(const GemmChoices& choices, bool used = false);
/// All that were adopted or came of timing, for later processes.
GemmChoices known_gemm_choices();
/// Those of the products that this process, or one that it continues, ran while choices were timed:
/// with them, another one has the same bits.
GemmChoices used_gemm_choices();

/// Of used_gemm_choices(), those that came from an earlier process.
int64_t gemm_choices_found();
/// Products timed so far, and the seconds that took.
int64_t gemm_choices_timed();
double gemm_timing_seconds();

/// For gemm_cuda.cu.
namespace gemm_choices {

bool timing();
std::optional<std::string> find(const std::string& product);
/// The algorithm that serves the product; `seconds`: of timing, none where it was not timed.
void use(const std::string& product, const std::string& algorithm, std::optional<double> seconds);

}  // namespace gemm_choices

}  // namespace tightloop
