#include <algorithm>

#include "tightloop/core/threads.h"
#include "tightloop/ops/attention/attention_kernels.h"
#include "tightloop/ops/common/attention_pack.h"
#include "tightloop/ops/common/attention_tiles.h"
#include "tightloop/ops/common/row.h"

// A unit is one key/value head of one sequence with the query heads that share it. Its rows are
// packed once (copies with padded rows, and panels of the transpose), then blocks of queries meet
// blocks of keys. With many units, threads take whole units and pack into memory of their own; with
// few, all units are packed first and threads share their blocks. Either way every sum is formed in
// the same order.

namespace tightloop {
namespace {

using attention_detail::BwdPair;
using attention_detail::FwdBlock;
using attention_detail::kBlock;
using attention_detail::Kernels;
using attention_detail::kRowPad;
using attention_detail::kScoreLd;
using attention_detail::pack_panels;
using attention_detail::pack_rows;
using attention_detail::Pieces;
using attention_detail::round_up;

constexpr double kLog2e = 1.4426950408889634;

/// Sizes common to both directions.
struct Layout {
  const Kernels& kernels;
  int64_t batch, tokens, heads, kv_heads, dim;
  int64_t group, units, blocks;
  int64_t ld;      // floats of a packed row
  int64_t matrix;  // floats of one packed matrix, rows or panels
  bool by_unit;    // threads take whole units

  Layout(const Kernels& k, const Shape& q, const Shape& kv)
      : kernels(k),
        batch(q[0]),
        tokens(q[1]),
        heads(q[2]),
        kv_heads(kv[2]),
        dim(q[3]),
        group(heads / kv_heads),
        units(batch * kv_heads),
        blocks((tokens + kBlock - 1) / kBlock),
        ld(round_up(dim, k.nr) + kRowPad),
        matrix(blocks * kBlock * ld),
        by_unit(units % thread_count() == 0 || units >= 4 * thread_count()) {}

  int64_t packed_units() const {
    return by_unit ? std::min<int64_t>(units, thread_count()) : units;
  }
  int64_t packed_slot(int64_t unit) const { return by_unit ? thread_index() : unit; }
  /// Rows of a block that kernels may read: the last one is filled up with zeros.
  int64_t padded_rows(int64_t block) const {
    const int64_t rows = rows_of(block);
    return std::max(round_up(rows, kernels.mr), round_up(rows, kernels.nr));
  }
  int64_t rows_of(int64_t block) const { return std::min(kBlock, tokens - block * kBlock); }
  /// First element of a row of q or o, and of k or v.
  int64_t q_row(int64_t unit, int64_t member, int64_t token) const {
    const int64_t h = unit % kv_heads * group + member;
    return ((unit / kv_heads * tokens + token) * heads + h) * dim;
  }
  int64_t k_row(int64_t unit, int64_t token) const {
    return ((unit / kv_heads * tokens + token) * kv_heads + unit % kv_heads) * dim;
  }
  int64_t lse_row(int64_t unit, int64_t member) const {
    return (unit / kv_heads * heads + unit % kv_heads * group + member) * tokens;
  }

  /// body(unit, block) for every block, after prepare(unit, block) of all blocks of the unit; then
  /// finish(unit, block).
  template <typename Prepare, typename Body>
  void for_each_block(Prepare&& prepare, Body&& body) const {
    if (by_unit) {
      each(units, [&](int64_t unit) {
        for (int64_t block = 0; block < blocks; ++block) prepare(unit, block);
        for (int64_t block = 0; block < blocks; ++block) body(unit, block);
      });
    } else {
      each(units * blocks, [&](int64_t i) { prepare(i / blocks, i % blocks); });
      // The last blocks see the most keys: they go first.
      each(units * blocks, [&](int64_t i) { body(i % units, blocks - 1 - i / units); });
    }
  }

  template <typename Body>
  static void each(int64_t count, Body&& body) {
    parallel_parts(count, count, [&](int64_t i, int64_t, int) { body(i); });
  }
};

TL_CLONES float dot_of(const float* x, const float* y, int64_t n) {
  return dot_row(x, y, n);
}

/// Memory of one packed unit, forward.
struct FwdUnit {
  float *k_panels, *v;
  FwdUnit(const Layout& l, Pieces pieces)
      : k_panels(pieces.take(l.matrix)), v(pieces.take(l.matrix)) {}
  static int64_t floats(const Layout& l) { return 2 * l.matrix; }
};

/// Memory of one thread, forward.
struct FwdWork {
  float *q, *sums, *scores, *largest, *total;
  FwdWork(const Layout& l, Pieces pieces)
      : q(pieces.take(kBlock * l.ld)),
        sums(pieces.take(kBlock * l.ld)),
        scores(pieces.take(kBlock * kScoreLd)),
        largest(pieces.take(kBlock)),
        total(pieces.take(kBlock)) {}
  static int64_t floats(const Layout& l) { return kBlock * (2 * l.ld + kScoreLd + 2); }
};

/// Memory of one packed unit, backward.
struct BwdUnit {
  float *k, *k_panels, *v_panels, *dk, *dv, *group;
  BwdUnit(const Layout& l, Pieces pieces)
      : k(pieces.take(l.matrix)),
        k_panels(pieces.take(l.matrix)),
        v_panels(pieces.take(l.matrix)),
        dk(pieces.take(l.matrix)),
        dv(pieces.take(l.matrix)),
        group(pieces.next) {}
  static int64_t floats(const Layout& l) {
    return 5 * l.matrix + l.group * (3 * l.matrix + 2 * l.blocks * kBlock);
  }
};

/// The part of it that belongs to one query head.
struct BwdHead {
  float *q, *grad_o, *dq, *lse_log2, *delta;
  BwdHead(const Layout& l, const BwdUnit& unit, int64_t member) {
    const int64_t rows = l.blocks * kBlock;
    Pieces pieces{unit.group + member * (3 * l.matrix + 2 * rows)};
    q = pieces.take(l.matrix);
    grad_o = pieces.take(l.matrix);
    dq = pieces.take(l.matrix);
    lse_log2 = pieces.take(rows);
    delta = pieces.take(rows);
  }
};

constexpr int64_t kBwdWork = 2 * kBlock * kScoreLd;  // floats of one thread, backward

template <typename Unit>
Pieces unit_memory(const Layout& l, std::span<std::byte> scratch, int64_t unit) {
  return {reinterpret_cast<float*>(scratch.data()) + l.packed_slot(unit) * Unit::floats(l)};
}

template <typename Unit>
Pieces thread_memory(const Layout& l, std::span<std::byte> scratch, int64_t floats) {
  return {reinterpret_cast<float*>(scratch.data()) + l.packed_units() * Unit::floats(l) +
          thread_index() * floats};
}

int64_t fwd_floats(const Layout& l) {
  return l.packed_units() * FwdUnit::floats(l) + thread_count() * FwdWork::floats(l);
}
int64_t bwd_floats(const Layout& l) {
  return l.packed_units() * BwdUnit::floats(l) + thread_count() * kBwdWork;
}

}  // namespace

int64_t attention_fwd_scratch_bytes(const Shape& q, const Shape& k, const AttentionTiles& tiles) {
  return fwd_floats(Layout(tiles, q, k)) * int64_t{sizeof(float)};
}
int64_t attention_bwd_scratch_bytes(const Shape& q, const Shape& k, const AttentionTiles& tiles) {
  return bwd_floats(Layout(tiles, q, k)) * int64_t{sizeof(float)};
}

void attention_fwd_cpu(const AttentionFwd& a,
                       const AttentionTiles& tiles,
                       std::span<std::byte> scratch) {
  const Layout l(tiles, a.q.shape(), a.k.shape());
  TL_CHECK(static_cast<int64_t>(scratch.size()) >= fwd_floats(l) * int64_t{sizeof(float)});
  const float *q = a.q.as<float>(), *k = a.k.as<float>(), *v = a.v.as<float>();
  float *o = a.o.as<float>(), *lse = a.lse.as<float>();
  const int64_t window = std::min(a.window, l.tokens);

  const auto prepare = [&](int64_t unit, int64_t block) {
    const FwdUnit packed(l, unit_memory<FwdUnit>(l, scratch, unit));
    const int64_t first = block * kBlock, rows = l.rows_of(block), row = l.k_row(unit, first);
    const int64_t padded = l.padded_rows(block), stride = l.kv_heads * l.dim;
    pack_panels(k + row, stride, rows, padded, l.dim, l.kernels.nr,
                packed.k_panels + first * l.dim);
    pack_rows(v + row, stride, rows, padded, l.dim, l.ld, packed.v + first * l.ld);
  };
  const auto body = [&](int64_t unit, int64_t block) {
    const FwdUnit packed(l, unit_memory<FwdUnit>(l, scratch, unit));
    const FwdWork work(l, thread_memory<FwdUnit>(l, scratch, FwdWork::floats(l)));
    const int64_t first = block * kBlock, rows = l.rows_of(block);
    for (int64_t member = 0; member < l.group; ++member) {
      const int64_t row = l.q_row(unit, member, first);
      pack_rows(q + row, l.heads * l.dim, rows, l.padded_rows(block), l.dim, l.ld, work.q);
      l.kernels.fwd({.q = work.q,
                     .k_panels = packed.k_panels,
                     .v = packed.v,
                     .sums = work.sums,
                     .scores = work.scores,
                     .largest = work.largest,
                     .total = work.total,
                     .o = o + row,
                     .o_stride = l.heads * l.dim,
                     .lse = lse + l.lse_row(unit, member) + first,
                     .first_query = first,
                     .queries = rows,
                     .dim = l.dim,
                     .ld = l.ld,
                     .window = window,
                     .scale_log2 = static_cast<float>(a.softmax_scale * kLog2e)});
    }
  };
  l.for_each_block(prepare, body);
}

void attention_bwd_cpu(const AttentionBwd& a,
                       const AttentionTiles& tiles,
                       std::span<std::byte> scratch) {
  const Layout l(tiles, a.q.shape(), a.k.shape());
  TL_CHECK(static_cast<int64_t>(scratch.size()) >= bwd_floats(l) * int64_t{sizeof(float)});
  const float *q = a.q.as<float>(), *k = a.k.as<float>(), *v = a.v.as<float>();
  const float *grad_o = a.grad_o.as<float>(), *o = a.o.as<float>(), *lse = a.lse.as<float>();
  float *dq = a.dq.as<float>(), *dk = a.dk.as<float>(), *dv = a.dv.as<float>();
  const int64_t window = std::min(a.window, l.tokens);
  const int64_t q_stride = l.heads * l.dim, k_stride = l.kv_heads * l.dim;
  const float scale = static_cast<float>(a.softmax_scale);

  const auto prepare = [&](int64_t unit, int64_t block) {
    const BwdUnit packed(l, unit_memory<BwdUnit>(l, scratch, unit));
    const int64_t first = block * kBlock, rows = l.rows_of(block), padded = l.padded_rows(block);
    const int64_t row = l.k_row(unit, first), at = first * l.ld;
    pack_rows(k + row, k_stride, rows, padded, l.dim, l.ld, packed.k + at);
    pack_panels(k + row, k_stride, rows, padded, l.dim, l.kernels.nr,
                packed.k_panels + first * l.dim);
    pack_panels(v + row, k_stride, rows, padded, l.dim, l.kernels.nr,
                packed.v_panels + first * l.dim);
    std::fill_n(packed.dk + at, padded * l.ld, 0.0f);
    std::fill_n(packed.dv + at, padded * l.ld, 0.0f);
    for (int64_t member = 0; member < l.group; ++member) {
      const BwdHead head(l, packed, member);
      const int64_t q_row = l.q_row(unit, member, first);
      pack_rows(q + q_row, q_stride, rows, padded, l.dim, l.ld, head.q + at);
      pack_rows(grad_o + q_row, q_stride, rows, padded, l.dim, l.ld, head.grad_o + at);
      std::fill_n(head.dq + at, padded * l.ld, 0.0f);
      const float* row_lse = lse + l.lse_row(unit, member) + first;
      for (int64_t r = 0; r < padded; ++r) {
        const int64_t from = q_row + r * q_stride;
        const bool real = r < rows;
        head.lse_log2[first + r] = real ? row_lse[r] * static_cast<float>(kLog2e) : 0.0f;
        head.delta[first + r] = real ? scale * dot_of(grad_o + from, o + from, l.dim) : 0.0f;
      }
    }
  };
  const auto pair = [&](int64_t unit, int64_t key_block, int64_t query_block) {
    const BwdUnit packed(l, unit_memory<BwdUnit>(l, scratch, unit));
    Pieces work = thread_memory<BwdUnit>(l, scratch, kBwdWork);
    float *p = work.take(kBlock * kScoreLd), *ds = work.take(kBlock * kScoreLd);
    const int64_t first_key = key_block * kBlock, first_query = query_block * kBlock;
    const int64_t at_key = first_key * l.ld, at_query = first_query * l.ld;
    for (int64_t member = 0; member < l.group; ++member) {
      const BwdHead head(l, packed, member);
      l.kernels.bwd({.q = head.q + at_query,
                     .grad_o = head.grad_o + at_query,
                     .lse_log2 = head.lse_log2 + first_query,
                     .delta = head.delta + first_query,
                     .k = packed.k + at_key,
                     .k_panels = packed.k_panels + first_key * l.dim,
                     .v_panels = packed.v_panels + first_key * l.dim,
                     .dq = head.dq + at_query,
                     .dk = packed.dk + at_key,
                     .dv = packed.dv + at_key,
                     .p = p,
                     .ds = ds,
                     .first_query = first_query,
                     .queries = l.rows_of(query_block),
                     .first_key = first_key,
                     .keys = l.rows_of(key_block),
                     .dim = l.dim,
                     .ld = l.ld,
                     .window = window,
                     .scale = scale,
                     .scale_log2 = static_cast<float>(a.softmax_scale * kLog2e)});
    }
  };
  const auto finish = [&](int64_t unit, int64_t block) {
    const BwdUnit packed(l, unit_memory<BwdUnit>(l, scratch, unit));
    for (int64_t t = block * kBlock; t < block * kBlock + l.rows_of(block); ++t) {
      std::copy_n(packed.dk + t * l.ld, l.dim, dk + l.k_row(unit, t));
      std::copy_n(packed.dv + t * l.ld, l.dim, dv + l.k_row(unit, t));
      for (int64_t member = 0; member < l.group; ++member)
        std::copy_n(BwdHead(l, packed, member).dq + t * l.ld, l.dim, dq + l.q_row(unit, member, t));
    }
  };

  // Blocks of keys and queries meet by their distance, 0 first: dk and dv add over ascending query
  // blocks, dq over descending key blocks, whoever runs them.
  const int64_t reach = std::min(l.blocks - 1, (window + kBlock - 1) / kBlock);
  if (l.by_unit) {
    Layout::each(l.units, [&](int64_t unit) {
      for (int64_t block = 0; block < l.blocks; ++block) prepare(unit, block);
      for (int64_t key_block = l.blocks - 1; key_block >= 0; --key_block) {
        const int64_t last = std::min(l.blocks - 1, key_block + reach);
        for (int64_t block = key_block; block <= last; ++block) pair(unit, key_block, block);
      }
      for (int64_t block = 0; block < l.blocks; ++block) finish(unit, block);
    });
    return;
  }
  Layout::each(l.units * l.blocks, [&](int64_t i) { prepare(i / l.blocks, i % l.blocks); });
  for (int64_t distance = 0; distance <= reach; ++distance) {
    const int64_t pairs = l.blocks - distance;  // no two share a block of keys or of queries
    Layout::each(l.units * pairs,
                 [&](int64_t i) { pair(i / pairs, i % pairs, i % pairs + distance); });
  }
  Layout::each(l.units * l.blocks, [&](int64_t i) { finish(i / l.blocks, i % l.blocks); });
}

}  // namespace tightloop
