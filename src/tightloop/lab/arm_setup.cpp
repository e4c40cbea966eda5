#include "tightloop/lab/arm_setup.h"

namespace tightloop {

std::unique_ptr<ArmSetup> set_up(const Experiment& experiment,
                                 const Arm& arm,
                                 const std::string& resume) {
  auto setup = std::make_unique<ArmSetup>();
  declare_train_options(setup->options, setup->config);
  for (const FlagValues& flags : {experiment.base, arm.rewrites}) {
    for (const auto& [flag, value] : flags)
      setup->options.set(flag, value, "experiment " + experiment.name);
  }
  if (!resume.empty()) setup->options.set("resume", resume, "resume check");
  setup->trainer = std::make_unique<Trainer>(setup->config, setup->options);
  return setup;
}

}  // namespace tightloop
