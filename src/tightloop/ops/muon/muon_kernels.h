#pragma once

#include "tightloop/ops/muon/muon.h"

namespace tightloop {

// On cuda; fixed, so bits repeat.
constexpr int64_t kMuonSlices = 32;  // row slices of the sums along columns
constexpr int64_t kMuonShare = 256;  // elements of S whose sums a block shares

/// Blocks that find an S of this many elements.
constexpr int64_t muon_shares(int64_t groups) {
  return (groups + kMuonShare - 1) / kMuonShare;
}

/// One matrix of a call.
struct MuonMomentumMatrix {
  ConstTensorView g, hyper;
  TensorView momentum, u;
};
struct MuonUpdateMatrix {
  ConstTensorView x, hyper;
  TensorView p, second_moment;
};

void muon_momentum_ref(const MuonMomentumMatrix& args);
void muon_update_ref(const MuonUpdateMatrix& args);
void muon_momentum_cpu(const MuonMomentumMatrix& args);
/// scratch: muon_update_scratch(p) bytes.
void muon_update_cpu(const MuonUpdateMatrix& args, std::byte* scratch);
int64_t muon_update_scratch(const Shape& parameter);
/// Bits do not depend on which matrices share a call.
void muon_momentum_cuda(const Exec& exec, const MuonMomentum& args);
/// exec.scratch, for each matrix with an S of n elements: kMuonSlices * n doubles (n when p has as
/// many rows as columns or more), two doubles a share, n floats.
void muon_update_cuda(const Exec& exec, const MuonUpdate& args);

}  // namespace tightloop
