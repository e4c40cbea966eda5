#include "tightloop/train/check_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>

#include <nlohmann/json.hpp>

#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/core/rng.h"
#include "tightloop/io/safetensors.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/optim/optimizer.h"
#include "tightloop/program/differentiate.h"
#include "tightloop/text/bpe_case.h"
#include "tightloop/train/case_file.h"
#include "tightloop/train/programs.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

std::string listed(const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) text += (text.empty() ? "" : ", ") + std::to_string(id);
  return text;
}

std::string in(const std::string& folder, std::string_view file) {
  return (fs::path(folder) / file).string();
}

/// |a-b| and |b| (2-norms), largest |a-b| and largest |b|.
struct Difference {
  double norm = 0.0, expected_norm = 0.0, largest = 0.0, expected_largest = 0.0;
};

Difference compare(int64_t n,
                   const std::function<double(int64_t)>& got,
                   const std::function<double(int64_t)>& want) {
  Difference d;
  for (int64_t i = 0; i < n; ++i) {
    const double a = got(i), b = want(i);
    if (std::isnan(a)) {
      d.norm = d.largest = std::nan("");
      return d;
    }
    d.norm += (a - b) * (a - b);
    d.expected_norm += b * b;
    d.largest = std::max(d.largest, std::abs(a - b));
    d.expected_largest = std::max(d.expected_largest, std::abs(b));
  }
  d.norm = std::sqrt(d.norm);
  d.expected_norm = std::sqrt(d.expected_norm);
  return d;
}

/// Cross-entropy of the `vocab` logits from element `at` on; 0 for an ignored target.
double token_loss(const ConstTensorView& logits, int64_t at, int64_t vocab, int32_t target) {
  if (target < 0) return 0.0;
  double largest = -HUGE_VAL, sum = 0.0;
  for (int64_t i = 0; i < vocab; ++i) largest = std::max(largest, get_element(logits, at + i));
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(get_element(logits, at + i) - largest);
  return largest + std::log(sum) - get_element(logits, at + target);
}

}  // namespace

bool CaseReport::ok() const {
  return failures.empty() && std::all_of(quantities.begin(), quantities.end(),
                                         [](const CaseQuantity& q) { return q.ok(); });
}

const CaseQuantity* CaseReport::worst() const {
  const CaseQuantity* worst = nullptr;
  for (const CaseQuantity& q : quantities) {
    if (worst == nullptr || !(q.error / q.tolerance <= worst->error / worst->tolerance)) worst = &q;
  }
  return worst;
}

std::string case_kind(const std::string& folder) {
  const std::string path = in(folder, "case.json");
  const std::string kind = get_string(read_json(path), "model", path);
  if (kind != "nanochat" && kind != "bpe")
    throw Error(
        ErrorKind::unsupported,
        fmt::format("{}: model '{}' cannot be checked yet; nanochat and bpe can", path, kind))
        .with_hint("`tightloop check tests/golden/*` runs the ones of the source tree");
  return kind;
}

std::vector<std::string> unapplied_rewrites(std::string_view program,
                                            std::span<const RewriteReport> reports) {
  std::vector<std::string> sentences;
  for (const RewriteReport& r : reports) {
    if (!r.applied.empty()) continue;
    sentences.push_back(fmt::format("rewrite {} did not apply to the Program '{}': {}", r.name,
                                    program, r.not_applied.empty() ? "no site" : r.not_applied[0]));
  }
  return sentences;
}

CaseReport run_nanochat_case(const std::string& folder, const CaseOptions& options) {
  const std::string where = in(folder, "case.json");
  const NanochatCase c = parse_nanochat_case(read_file(where, int64_t{1} << 26), where);
  const NanochatConfig& model = c.model;

  const SafetensorsFile weights(in(folder, "weights.safetensors"));
  const SafetensorsFile tokens(in(folder, "tokens.safetensors"));
  const SafetensorsFile expected(in(folder, "expected.safetensors"));
  const Shape batch = tokens.at("step0.inputs").shape();
  if (batch.rank() != 2 || batch[1] > model.sequence_len)
    fail(ErrorKind::data, "{}: step0.inputs has shape {}, expected (B, T <= {})", tokens.path(),
         to_string(batch), model.sequence_len);

  std::vector<ParameterGroup> plain_groups;
  for (const CaseGroup& g : c.groups) plain_groups.push_back(g.group);
  const TrainProgramsSpec spec{.model = model,
                               .batch = batch[0],
                               .tokens = batch[1],
                               .rewrites = options.rewrites,
                               // Small enough that even these heads come in several chunks.
                               .rewrite_options = {.ce_chunk_bytes = 64 << 10},
                               .device = options.device,
                               .dtype = options.dtype};
  TrainPrograms programs = build_train_programs(spec, plain_groups);
  TrainProgramsSpec forward_spec = spec;
  std::erase(forward_spec.rewrites, "chunked-ce");  // its logits have a reader
  const PlannedProgram forward = build_forward_program(forward_spec, programs.slots);

  CaseReport report{folder, options.device, options.dtype, options.rewrites, {}, {}};
  const PlannedProgram* const rewritten[]{&programs.first_micro_step, &programs.next_micro_step,
                                          &programs.evaluation, &forward};
  for (const PlannedProgram* planned : rewritten) {
    for (std::string& failure : unapplied_rewrites(planned->program.name(), planned->reports))
      report.failures.push_back(std::move(failure));
  }

  const SlotStore slots(programs.slots, options.device);
  const Workspace workspace(
      {&forward.plan, &programs.first_micro_step.plan, &programs.optimizer.plan});
  Executable run_forward(forward.program, forward.plan, slots, workspace);
  Executable run_step(programs.first_micro_step.program, programs.first_micro_step.plan, slots,
                      workspace);
  Executable run_optimizer(programs.optimizer.program, programs.optimizer.plan, slots, workspace);

  for (const NanochatParameter& p : programs.parameters) {
    const ConstTensorView stored = weights.at(p.name, {DType::f32, p.shape});
    const TensorView slot = slots.host(p.name);
    for (int64_t i = 0; i < stored.elems(); ++i) set_element(slot, i, get_element(stored, i));
    slots.push(p.name);
  }
  init_rope_table(model, slots.host("rope_table"));
  slots.push("rope_table");

  const CaseTolerances allowed = options.dtype == DType::f32 ? c.tolerances : bf16_tolerances();
  const auto factor = [&](const NanochatParameter& p) {
    return p.shape.elems() < kSmallTensor ? allowed.small : 1.0;
  };
  // In a model of at most two layers the backout only scales what the last norm normalises again.
  const auto compared = [&](const std::string& name) {
    return name != "backout_lambda" || model.n_layer > 2;
  };

  for (int64_t step = 0; step < c.steps; ++step) {
    int64_t targets = 0;
    for (const auto& [file_name, slot] :
         {std::pair<std::string, std::string_view>{"inputs", kTokensSlot},
          {"targets", kTargetsSlot}}) {
      const ConstTensorView t =
          tokens.at(fmt::format("step{}.{}", step, file_name), {DType::i32, batch});
      for (int64_t i = 0; i < t.elems(); ++i) {
        const int32_t id = t.as<int32_t>()[i];
        const bool target = slot == kTargetsSlot;
        if (id >= model.vocab_size || id < (target ? -1 : 0))
          fail(ErrorKind::data, "{}: step{}.{}[{}] is {}, the vocabulary has {}", tokens.path(),
               step, file_name, i, id, model.vocab_size);
        if (target && id >= 0) ++targets;
      }
      std::memcpy(slots.host(slot).data, t.data, static_cast<size_t>(t.bytes()));
      slots.push(slot);
    }
    set_element(slots.host(kLossScaleSlot), 0, 1.0 / static_cast<double>(targets));
    slots.push(kLossScaleSlot);

    if (step == 0) {
      run_forward.run();
      const TensorView got = slots.pull("logits");
      const int64_t V = model.vocab_size, Vp = model.padded_vocab();
      const ConstTensorView want =
          expected.at("step0.logits", {DType::f32, {batch[0], batch[1], V}});
      const Difference d = compare(
          want.elems(), [&](int64_t i) { return get_element(got, i / V * Vp + i % V); },
          [&](int64_t i) { return get_element(want, i); });
      report.quantities.push_back({"logits", d.largest / d.expected_largest, allowed.logits});
      const TensorView ids = slots.host(kTargetsSlot);
      const Difference losses = compare(
          ids.elems(), [&](int64_t i) { return token_loss(got, i * Vp, V, ids.as<int32_t>()[i]); },
          [&](int64_t i) { return token_loss(want, i * V, V, ids.as<int32_t>()[i]); });
      report.quantities.push_back(
          {"token_losses", losses.norm / losses.expected_norm, allowed.token_losses});
    }
    run_step.run();
    const double loss = get_element(slots.pull(kLossSlot), 0);
    const double want_loss = c.losses[static_cast<size_t>(step)];
    report.quantities.push_back({fmt::format("loss.step{}", step),
                                 std::abs(loss - want_loss) / std::abs(want_loss),
                                 step == 0 ? allowed.loss : allowed.updated_loss});
    if (step == 0) {
      for (const NanochatParameter& p : programs.parameters) {
        if (!compared(p.name)) continue;
        const ConstTensorView want = expected.at("step0.grad." + p.name, {DType::f32, p.shape});
        const TensorView got = slots.pull(grad_name(p.name));
        const Difference d = compare(
            want.elems(), [&](int64_t i) { return get_element(got, i); },
            [&](int64_t i) { return get_element(want, i); });
        report.quantities.push_back({"grad." + p.name,
                                     d.expected_norm > 0 ? d.norm / d.expected_norm : d.norm,
                                     allowed.grad * factor(p)});
      }
    }
    for (const CaseGroup& g : c.groups) {
      const HyperValues values =
          g.group.kind == OptimizerKind::adamw
              ? adamw_hypers(g.group, g.group.lr, step + 1)
              : muon_hypers(g.group, g.group.lr, g.momentum, g.group.weight_decay);
      const SlotId id = slots.table().get(hyper_name(g.group.name));
      const TensorView slot = slots.host(id);
      for (size_t i = 0; i < values.size(); ++i)
        set_element(slot, static_cast<int64_t>(i), values[i]);
      slots.push(id);
    }
    run_optimizer.run();
  }

  for (const NanochatParameter& p : programs.parameters) {
    if (!compared(p.name)) continue;
    const ConstTensorView want = expected.at("final." + p.name, {DType::f32, p.shape}),
                          start = weights.at(p.name);
    const TensorView got = slots.pull(p.name);
    const Difference d = compare(
        want.elems(), [&](int64_t i) { return get_element(got, i) - get_element(start, i); },
        [&](int64_t i) { return get_element(want, i) - get_element(start, i); });
    report.quantities.push_back({"final." + p.name,
                                 d.expected_norm > 0 ? d.norm / d.expected_norm : d.norm,
                                 allowed.final * factor(p)});
  }
  return report;
}

CaseReport run_tokenizer_case(const std::string& folder) {
  const BpeCaseResult result = run_bpe_case(folder);
  CaseReport report{folder, Device::cpu, DType::f32, {}, {}, {}};
  if (result.vocab_size != result.expected_vocab_size)
    report.failures.push_back(fmt::format("the vocabulary has {} tokens, expected {}",
                                          result.vocab_size, result.expected_vocab_size));
  for (const BpeFailure& f : result.failures) {
    const bool ids = f.got == f.expected;
    report.failures.push_back(
        ids ? fmt::format("text {} decodes to '{}', expected '{}'", f.index, f.decoded, f.text)
            : fmt::format("text {} ('{}') encodes to [{}], expected [{}]", f.index, f.text,
                          listed(f.got), listed(f.expected)));
  }
  report.quantities.push_back({fmt::format("{} texts, {} ids", result.cases, result.tokens),
                               static_cast<double>(result.failures.size()), 0.5});
  return report;
}

std::vector<std::vector<std::string>> rewrite_sweep(uint64_t seed) {
  std::vector<std::string> names;
  for (const Rewrite& rewrite : all_rewrites()) names.emplace_back(rewrite.name);
  const size_t n = names.size();
  std::vector<std::vector<std::string>> sets;
  const auto add = [&](std::vector<std::string> set) {
    if (std::find(sets.begin(), sets.end(), set) == sets.end()) sets.push_back(std::move(set));
  };
  add({});
  for (size_t i = 0; i < n; ++i) add({names[i]});
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = i + 1; j < n; ++j) add({names[i], names[j]});
  }
  add(names);
  Rng rng(seed, 0);
  for (int k = 0; k < 16; ++k) {
    std::vector<std::string> set;
    for (const std::string& name : names) {
      if (rng.below(2) == 1) set.push_back(name);
    }
    add(std::move(set));
  }
  return sets;
}

}  // namespace tightloop
