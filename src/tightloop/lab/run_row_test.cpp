#include "tightloop/lab/run_row.h"

#include <filesystem>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

class RunRowTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  LedgerRow row(const std::string& run, const std::string& summary) const {
    write_file_atomically((folder_ / "run.json").string(), run);
    write_file_atomically((folder_ / "summary.json").string(), summary);
    Experiment experiment;
    experiment.name = "G";
    experiment.arms = {{"baseline", {}}};
    experiment.seeds = {1};
    return row_of_run(folder_.string(), experiment, experiment.cells().front(), 1, nullptr);
  }

  fs::path folder_ = fs::temp_directory_path() / fmt::format("tl-run-row-{}", ::getpid());
};

TEST_F(RunRowTest, WhatOnlyCudaHas) {
  const LedgerRow r = row(
      R"({"device": "cuda", "gpu": {"name": "NVIDIA H200", "driver": "13.0", "runtime": "12.10"}})",
      R"({"status": "ok", "counted_steps_of_process": 40, "programs_bound": 5, "bind_ms": 2.5,
          "programs_bound_in_steps": 0, "blocks_made_in_steps": 0, "graphs_captured": 4,
          "capture_ms": 7.5, "graphs_captured_in_steps": 1, "graph_breaks_in_steps": 3,
          "device_allocations_in_steps": 2, "device_syncs_in_steps": 10, "gemm_products": 8,
          "gemm_products_found": 6, "gemm_products_timed": 2, "gemm_timing_ms": 12.25})");
  EXPECT_EQ(r.text("gpu_name"), "NVIDIA H200");
  EXPECT_EQ(r.text("driver"), "13.0");
  EXPECT_EQ(r.text("cuda"), "12.10");
  EXPECT_EQ(r.integer("captures"), 4);
  EXPECT_EQ(r.number("capture_ms"), 7.5);
  EXPECT_EQ(r.integer("recaptures"), 1);
  EXPECT_EQ(r.integer("graph_breaks"), 3);
  EXPECT_EQ(r.integer("allocs_after_warmup"), 2);
  EXPECT_EQ(r.number("host_syncs_per_step"), 0.25);
  EXPECT_EQ(r.number("autotune_hit_rate"), 0.75);
  EXPECT_EQ(r.number("autotune_ms"), 12.25);
}

TEST_F(RunRowTest, WhatWasNotMeasuredIsMissing) {
  const LedgerRow cpu = row(R"({"device": "cpu"})",
                            R"({"status": "ok", "counted_steps_of_process": 40, "bind_ms": 2.5,
          "programs_bound": 5, "programs_bound_in_steps": 0, "blocks_made_in_steps": 0})");
  EXPECT_EQ(cpu.integer("captures"), 5);
  EXPECT_EQ(cpu.number("capture_ms"), 2.5);
  EXPECT_EQ(cpu.integer("recaptures"), 0);
  EXPECT_EQ(cpu.integer("allocs_after_warmup"), 0);
  for (const char* column : {"gpu_name", "driver", "cuda", "graph_breaks", "host_syncs_per_step",
                             "autotune_ms", "autotune_hit_rate"})
    EXPECT_EQ(cpu.text(column), "") << column;
  // No counted step, no product: no rate.
  const LedgerRow brief = row(R"({"device": "cuda"})",
                              R"({"status": "ok", "counted_steps_of_process": 0,
          "device_syncs_in_steps": 0, "gemm_products": 0, "gemm_products_found": 0})");
  EXPECT_EQ(brief.text("host_syncs_per_step"), "");
  EXPECT_EQ(brief.text("autotune_hit_rate"), "");
}

}  // namespace
}  // namespace tightloop
