#pragma once

#include "tightloop/ops/muon/muon.h"

namespace tightloop {

void muon_momentum_ref(const MuonMomentum& args);
void muon_update_ref(const MuonUpdate& args);
void muon_momentum_cpu(const MuonMomentum& args);
/// scratch: muon_update_scratch(p) bytes.
void muon_update_cpu(const MuonUpdate& args, std::byte* scratch);
int64_t muon_update_scratch(const Shape& parameter);

}  // namespace tightloop
