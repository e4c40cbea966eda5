#pragma once

#include "tightloop/ops/head_gate/head_gate.h"

namespace tightloop {

constexpr int64_t kHeadGateBlocks = 64;  // row blocks of the weight gradient: fixed, so bits repeat
constexpr int64_t kHeadGateCudaBlocks = 1024;  // the same on cuda

void head_gate_fwd_ref(const HeadGateFwd& args);
void head_gate_bwd_ref(const HeadGateBwd& args);
void gated_add_fwd_ref(const GatedAddFwd& args);
void gated_add_bwd_ref(const GatedAddBwd& args);
void head_gate_fwd_cpu(const HeadGateFwd& args);
/// scratch: kHeadGateBlocks * Hkv * m floats when dw is given.
void head_gate_bwd_cpu(const HeadGateBwd& args, float* scratch);
void gated_add_fwd_cpu(const GatedAddFwd& args);
void gated_add_bwd_cpu(const GatedAddBwd& args);
void head_gate_fwd_cuda(const Exec& exec, const HeadGateFwd& args);
/// exec.scratch: as on the CPU.
void head_gate_bwd_cuda(const Exec& exec, const HeadGateBwd& args);
void gated_add_fwd_cuda(const Exec& exec, const GatedAddFwd& args);
void gated_add_bwd_cuda(const Exec& exec, const GatedAddBwd& args);

}  // namespace tightloop
