#include "tightloop/ops/common/gemm.h"

#include <algorithm>
#include <cstring>

#include "tightloop/core/error.h"
#include "tightloop/core/threads.h"
#include "tightloop/ops/common/gemm_kernels.h"

namespace tightloop {
namespace gemm_detail {
namespace {

// Blocking, all in floats of packed data. A task keeps one packed block of A (block_m x kBlockK,
// 192 KiB) in its L2 and one sliver of B (kBlockK x nr, 16 KiB) in its L1; the packed B is shared
// by all threads and stays in L3.
constexpr int64_t kSharedB{3 << 20};
// Up to this many rows B is packed by the task that uses it, at once, and A is packed before.
constexpr int64_t kFewRows{64};
constexpr int64_t kFewRowsBlockN{64};
constexpr int64_t kSharedA{2 << 20};
constexpr int64_t kAlign{16};  // floats: one cache line

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

/// The fixed partition of K: blocks of equal length, the last one shorter.
struct KBlocks {
  int64_t K, length, count;
  explicit KBlocks(int64_t k) : K(k) {
    count = std::max<int64_t>(1, ceil_div(K, kBlockK));
    length = std::max<int64_t>(8, round_up(ceil_div(K, count), 8));
    count = std::max<int64_t>(1, ceil_div(K, length));
  }
  int64_t begin(int64_t block) const { return block * length; }
  int64_t size(int64_t block) const { return std::min(K - begin(block), length); }
};

enum class Mode : uint8_t { row_kernels, few_rows, shared_b };

/// Everything that follows from shape, kernels and thread count. None of it touches the bits except
/// `mode`, which follows from the shape alone.
struct Plan {
  Mode mode;
  int threads;
  KBlocks k;
  int64_t k_group;         // K blocks packed at a time
  int64_t block_n;         // columns packed at a time (shared_b)
  int64_t shared_floats;   // packed B (shared_b), packed A (few_rows), x as f32 (row_kernels)
  int64_t partial_floats;  // f32 sums of a bf16 C over several K blocks
  int64_t thread_floats;   // per thread: a packed block and one tile
  int64_t total() const { return shared_floats + partial_floats + threads * thread_floats; }
};

constexpr int64_t kTileFloats{kMaxMr * kMaxNr};

Plan make_plan(const Kernels& kernels, const Gemm& g, int threads) {
  const int64_t mr = kernels.mr, nr = kernels.nr;
  Plan p{.mode = Mode::shared_b,
         .threads = threads,
         .k = KBlocks(g.K),
         .k_group = 1,
         .block_n = 0,
         .shared_floats = 0,
         .partial_floats = 0,
         .thread_floats = 0};
  const bool scaled_b = g.b.row_scale || g.b.col_scale;
  if (g.form == GemmForm::nt && g.M <= kMaxRowKernel && !scaled_b && g.K > 0) {
    p.mode = Mode::row_kernels;
    p.shared_floats = round_up(g.M * g.K, kAlign);
    p.thread_floats = round_up(kMaxRowKernel * kMaxNr, kAlign);
    return p;
  }
  const int64_t rows = round_up(g.M, mr);
  if (g.M <= kFewRows) {
    p.mode = Mode::few_rows;
    p.k_group = std::clamp<int64_t>(kSharedA / (rows * p.k.length), 1, p.k.count);
    p.shared_floats = round_up(p.k_group * p.k.length * rows, kAlign);
    p.thread_floats = round_up(p.k.length * kFewRowsBlockN, kAlign) + kTileFloats;
  } else {
    // As wide as fits next to at least four K blocks, so that A is packed few times.
    const int64_t depth = std::min<int64_t>(p.k.count, 4);
    const int64_t widest = std::max<int64_t>(nr, kSharedB / (depth * p.k.length) / nr * nr);
    const int64_t chunks = ceil_div(g.N, widest);
    p.block_n = std::min(round_up(ceil_div(g.N, chunks), nr), round_up(g.N, nr));
    p.k_group = std::clamp<int64_t>(kSharedB / (p.block_n * p.k.length), 1, p.k.count);
    p.shared_floats = round_up(p.k_group * p.k.length * p.block_n, kAlign);
    p.thread_floats = round_up(p.k.length * round_up(kernels.block_m, mr), kAlign) + kTileFloats;
  }
  if (g.c.dtype == DType::bf16 && p.k.count > 1) p.partial_floats = round_up(g.M * g.N, kAlign);
  return p;
}

/// An operand as packing sees it: element (i, k) lies at [i][k], or at [k][i] when k_major.
struct Operand {
  const GemmInput& in;
  bool k_major;

  PackSource at(int64_t i, int64_t k) const {
    const int64_t row = k_major ? k : i;
    const int64_t col = k_major ? i : k;
    const int64_t offset = (row * in.ld + col) * size_of(in.dtype);
    return PackSource{static_cast<const char*>(in.data) + offset, in.ld,
                      in.row_scale ? in.row_scale + row : nullptr,
                      in.col_scale ? in.col_scale + col : nullptr};
  }
  PackFn packer(const PackFn (&k_major_fns)[2][2], const PackFn (&row_major_fns)[2][2]) const {
    const int dtype = in.dtype == DType::bf16 ? 1 : 0;
    const int scaled = in.row_scale || in.col_scale ? 1 : 0;
    return (k_major ? k_major_fns : row_major_fns)[dtype][scaled];
  }
};

template <typename T>
T* offset_elems(T* data, DType dtype, int64_t elems) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(data) + elems * size_of(dtype);
}

/// Calls body(i) for every i below count, on all threads.
template <typename Body>
void each(int64_t count, const Body& body) {
  parallel_parts(count, count, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

/// One product in progress.
struct Run {
  const Kernels& kernels;
  const Gemm& g;
  Plan plan;
  Operand a, b;
  PackFn pack_a, pack_b;
  float* shared;
  float* partial;  // (M, N) f32 sums, when C itself cannot hold them
  float* thread_buffers;

  Run(const Kernels& kn, const Gemm& gemm, int threads, float* scratch)
      : kernels(kn),
        g(gemm),
        plan(make_plan(kn, gemm, threads)),
        a{gemm.a, gemm.form == GemmForm::tn},
        b{gemm.b, gemm.form != GemmForm::nt},
        pack_a(a.packer(kn.pack_a_k_major, kn.pack_a_row_major)),
        pack_b(b.packer(kn.pack_b_k_major, kn.pack_b_row_major)),
        shared(scratch),
        partial(plan.partial_floats ? scratch + plan.shared_floats : nullptr),
        thread_buffers(scratch + plan.shared_floats + plan.partial_floats) {}

  float* thread_buffer() const {
    return thread_buffers + (plan.threads == 1 ? 0 : thread_index()) * plan.thread_floats;
  }

  TileStore final_store(int64_t i, int64_t j) const {
    return TileStore{
        .partial = nullptr,
        .partial_ld = 0,
        .c = offset_elems(g.c.data, g.c.dtype, i * g.c.ld + j),
        .c_dtype = g.c.dtype,
        .c_ld = g.c.ld,
        .add_c = g.accumulate,
        .epilogue = g.epilogue,
        .e = g.e.data ? offset_elems(g.e.data, g.e.dtype, i * g.e.ld + j) : nullptr,
        .e_dtype = g.e.dtype,
        .e_ld = g.e.ld,
    };
  }

  /// Rows i.. (at most mr) times columns j.. (at most nr) over one K block, from packed panels.
  void tile(int64_t i,
            int64_t rows,
            int64_t j,
            int64_t block,
            const float* pa,
            const float* pb,
            float* tile_buffer) const {
    const int64_t cols = std::min<int64_t>(kernels.nr, g.N - j);
    const int64_t kc = plan.k.size(block);
    const bool first = block == 0;
    const bool last = block == plan.k.count - 1;
    const bool f32 = g.c.dtype == DType::f32;
    // Sums wait in C itself where it is f32, else in `partial`.
    float* sum = f32 ? static_cast<float*>(g.c.data) + i * g.c.ld + j
                     : (partial ? partial + i * g.N + j : nullptr);
    const int64_t sum_ld = f32 ? g.c.ld : g.N;
    const bool add = !first || (f32 && g.accumulate);
    const MicroKernel micro = kernels.micro[rows];
    const bool plain = !last || (f32 && g.epilogue == GemmEpilogue::none);
    if (plain && cols == kernels.nr) {
      micro(kc, pa, pb, sum, sum_ld, add);
      return;
    }
    micro(kc, pa, pb, tile_buffer, kernels.nr, false);
    TileStore to = final_store(i, j);
    if (!last) {
      to.c = sum;
      to.c_dtype = DType::f32;
      to.c_ld = sum_ld;
      to.epilogue = GemmEpilogue::none;
    }
    to.partial = add ? sum : nullptr;
    to.partial_ld = sum_ld;
    to.add_c = g.accumulate && !f32 && last;
    kernels.finish(tile_buffer, rows, cols, to);
  }

  void multiply(int64_t p0,
                int64_t p1,
                int64_t n0,
                int64_t s0,
                int64_t s1,
                int64_t b0,
                int64_t b1,
                int64_t block_floats) const;
  void shared_b() const;
  void few_rows() const;
  void row_kernels() const;
};

/// Panels p0..p1 of A times slivers s0..s1 of the packed B, over the K blocks b0..b1 that it holds.
void Run::multiply(int64_t p0,
                   int64_t p1,
                   int64_t n0,
                   int64_t s0,
                   int64_t s1,
                   int64_t b0,
                   int64_t b1,
                   int64_t block_floats) const {
  const int64_t mr = kernels.mr, nr = kernels.nr;
  const int64_t panel_floats = plan.k.length * mr;
  const int64_t sliver_floats = plan.k.length * nr;
  const int64_t extent = std::min(p1 * mr, g.M) - p0 * mr;
  if (g.symmetric && n0 + s0 * nr >= p0 * mr + extent) return;
  float* tile_buffer = thread_buffer();
  float* packed_a = tile_buffer + kTileFloats;
  for (int64_t block = b0; block < b1; ++block) {
    pack_a(a.at(p0 * mr, plan.k.begin(block)), extent, plan.k.size(block), packed_a, panel_floats);
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t j = n0 + s * nr;
      const float* packed_b = shared + (block - b0) * block_floats + s * sliver_floats;
      // The next sliver comes from L3: fetch a part of it with every tile.
      const float* next = packed_b + sliver_floats;
      const int64_t next_floats = s + 1 < s1 ? plan.k.size(block) * nr : 0;
      for (int64_t p = p0; p < p1; ++p) {
        const int64_t next_end = (p - p0 + 1) * next_floats / (p1 - p0);
        for (int64_t at = (p - p0) * next_floats / (p1 - p0); at < next_end; at += kAlign)
          __builtin_prefetch(next + at, 0, 2);
        const int64_t i = p * mr;
        const int64_t rows = std::min(mr, g.M - i);
        if (g.symmetric && j >= i + rows) continue;
        tile(i, rows, j, block, packed_a + (p - p0) * panel_floats, packed_b, tile_buffer);
      }
    }
  }
}

void Run::shared_b() const {
  const int64_t mr = kernels.mr, nr = kernels.nr;
  const int64_t panels = ceil_div(g.M, mr);
  const int64_t sliver_floats = plan.k.length * nr;

  for (int64_t n0 = 0; n0 < g.N; n0 += plan.block_n) {
    const int64_t cols = std::min(plan.block_n, g.N - n0);
    const int64_t slivers = ceil_div(cols, nr);
    const int64_t block_floats = slivers * sliver_floats;
    // Tasks: a few per thread, a multiple of the threads, of at least a few panels each; of as many
    // as L2 holds where columns are enough for the rest, as B comes from L3 once for each.
    const int64_t wanted = plan.threads == 1 ? 1 : 4 * plan.threads * (g.symmetric ? 4 : 1);
    const int64_t fewest = ceil_div(panels, ceil_div(kernels.block_m, mr));
    int64_t row_parts =
        slivers >= 64 ? fewest : std::max(fewest, std::min(wanted, ceil_div(panels, 8)));
    row_parts = std::min(round_up(row_parts, plan.threads), panels);
    const int64_t col_parts =
        std::clamp<int64_t>(ceil_div(wanted, row_parts), 1, std::max<int64_t>(1, slivers / 4));

    for (int64_t b0 = 0; b0 < plan.k.count; b0 += plan.k_group) {
      const int64_t b1 = std::min(b0 + plan.k_group, plan.k.count);
      // Pack: runs of eight slivers of one K block.
      const int64_t runs = ceil_div(slivers, 8);
      each((b1 - b0) * runs, [&](int64_t unit) {
        const int64_t block = b0 + unit / runs;
        const int64_t s = unit % runs * 8;
        pack_b(b.at(n0 + s * nr, plan.k.begin(block)), std::min(cols - s * nr, 8 * nr),
               plan.k.size(block), shared + (block - b0) * block_floats + s * sliver_floats,
               sliver_floats);
      });
      each(row_parts * col_parts, [&](int64_t task) {
        const int64_t row = task / col_parts, col = task % col_parts;
        multiply(row * panels / row_parts, (row + 1) * panels / row_parts, n0,
                 col * slivers / col_parts, (col + 1) * slivers / col_parts, b0, b1, block_floats);
      });
    }
  }
}

void Run::few_rows() const {
  const int64_t mr = kernels.mr, nr = kernels.nr;
  const int64_t panels = ceil_div(g.M, mr);
  const int64_t panel_floats = plan.k.length * mr;
  const int64_t sliver_floats = plan.k.length * nr;
  const int64_t slivers = ceil_div(g.N, nr);
  const int64_t run = kFewRowsBlockN / nr;

  for (int64_t b0 = 0; b0 < plan.k.count; b0 += plan.k_group) {
    const int64_t b1 = std::min(b0 + plan.k_group, plan.k.count);
    each(b1 - b0, [&](int64_t n) {
      pack_a(a.at(0, plan.k.begin(b0 + n)), g.M, plan.k.size(b0 + n),
             shared + n * panels * panel_floats, panel_floats);
    });
    each(ceil_div(slivers, run), [&](int64_t task) {
      float* tile_buffer = thread_buffer();
      float* packed_b = tile_buffer + kTileFloats;
      const int64_t s0 = task * run;
      const int64_t s1 = std::min(s0 + run, slivers);
      for (int64_t block = b0; block < b1; ++block) {
        pack_b(b.at(s0 * nr, plan.k.begin(block)), std::min(s1 * nr, g.N) - s0 * nr,
               plan.k.size(block), packed_b, sliver_floats);
        for (int64_t s = s0; s < s1; ++s) {
          for (int64_t p = 0; p < panels; ++p)
            tile(p * mr, std::min(mr, g.M - p * mr), s * nr, block,
                 shared + ((block - b0) * panels + p) * panel_floats,
                 packed_b + (s - s0) * sliver_floats, tile_buffer);
        }
      }
    });
  }
}

void Run::row_kernels() const {
  // x as contiguous f32 rows.
  const float* x = static_cast<const float*>(g.a.data);
  int64_t ldx = g.a.ld;
  if (g.a.dtype != DType::f32 || g.a.row_scale || g.a.col_scale) {
    for (int64_t i = 0; i < g.M; ++i) {
      for (int64_t k = 0; k < g.K; ++k) {
        float v = g.a.dtype == DType::f32
                      ? static_cast<const float*>(g.a.data)[i * g.a.ld + k]
                      : to_float(static_cast<const bf16*>(g.a.data)[i * g.a.ld + k]);
        if (g.a.row_scale) v *= g.a.row_scale[i];
        if (g.a.col_scale) v *= g.a.col_scale[k];
        shared[i * g.K + k] = v;
      }
    }
    x = shared;
    ldx = g.K;
  }
  const int64_t nr = kernels.nr;
  const int64_t slivers = ceil_div(g.N, nr);
  const RowKernel kernel = kernels.rows[g.b.dtype == DType::bf16 ? 1 : 0][g.M];
  const int64_t parts = std::min<int64_t>(slivers, int64_t{plan.threads} * 8);
  parallel_parts(slivers, parts, [&](int64_t begin, int64_t end, int) {
    float* tile_buffer = thread_buffer();
    for (int64_t s = begin; s < end; ++s) {
      const int64_t j = s * nr;
      const int64_t cols = std::min(nr, g.N - j);
      kernel(x, ldx, offset_elems(g.b.data, g.b.dtype, j * g.b.ld), g.b.ld, g.K,
             static_cast<int>(cols), tile_buffer);
      kernels.finish(tile_buffer, g.M, cols, final_store(0, j));
    }
  });
}

/// Copies the lower half of C to the upper, by blocks.
template <typename T>
void mirror(const Gemm& g) {
  constexpr int64_t kBlock{64};
  const int64_t blocks = ceil_div(g.M, kBlock);
  T* c = static_cast<T*>(g.c.data);
  parallel_parts(blocks, blocks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i0 = begin * kBlock; i0 < std::min(end * kBlock, g.M); i0 += kBlock) {
      for (int64_t j0 = i0; j0 < g.M; j0 += kBlock) {
        for (int64_t i = i0; i < std::min(i0 + kBlock, g.M); ++i) {
          for (int64_t j = std::max(j0, i + 1); j < std::min(j0 + kBlock, g.M); ++j)
            c[i * g.c.ld + j] = c[j * g.c.ld + i];
        }
      }
    }
  });
}

void check_float(const char* what, DType dtype) {
  if (dtype != DType::f32 && dtype != DType::bf16)
    fail(ErrorKind::dtype, "gemm: {} is {}, expected f32 or bf16", what, name_of(dtype));
}

void check_matrix(const char* what, const void* data, int64_t ld, int64_t rows, int64_t cols) {
  if (rows > 0 && cols > 0 && !data) fail(ErrorKind::shape, "gemm: {} is empty", what);
  if (ld < cols && rows > 1)
    fail(ErrorKind::shape, "gemm: {} has a row stride of {}, expected at least its {} columns",
         what, ld, cols);
}

void check(const Gemm& g) {
  if (g.M < 0 || g.N < 0 || g.K < 0)
    fail(ErrorKind::shape, "gemm: M, N, K are {}, {}, {}: none may be negative", g.M, g.N, g.K);
  check_float("A", g.a.dtype);
  check_float("B", g.b.dtype);
  check_float("C", g.c.dtype);
  const bool ta = g.form == GemmForm::tn, tb = g.form == GemmForm::nt;
  check_matrix("A", g.a.data, g.a.ld, ta ? g.K : g.M, ta ? g.M : g.K);
  check_matrix("B", g.b.data, g.b.ld, tb ? g.N : g.K, tb ? g.K : g.N);
  check_matrix("C", g.c.data, g.c.ld, g.M, g.N);
  const bool needs_e = g.epilogue == GemmEpilogue::relu2_bwd || g.epilogue == GemmEpilogue::add;
  if (needs_e) {
    if (g.e.data != nullptr && g.e.data == g.c.data)
      fail(ErrorKind::usage, "gemm: the epilogue's input is C itself, where sums over long K wait");
    check_float("the epilogue's input", g.e.dtype);
    check_matrix("the epilogue's input", g.e.data, g.e.ld, g.M, g.N);
  }
  if (g.accumulate && g.epilogue != GemmEpilogue::none)
    fail(ErrorKind::usage, "gemm: an epilogue cannot be combined with accumulate");
  if (g.symmetric && (g.M != g.N || g.accumulate || g.epilogue != GemmEpilogue::none))
    fail(ErrorKind::usage,
         "gemm: a symmetric product is square, overwrites C and has no epilogue; M, N are {}, {}",
         g.M, g.N);
  for (const GemmInput* in : {&g.a, &g.b}) {
    if (!in->row_scale != !in->col_scale)
      fail(ErrorKind::usage, "gemm: row_scale and col_scale of an operand come together");
  }
}

/// Scratch starts at the next cache line of whatever is given.
constexpr size_t kSlackBytes{64};

float* aligned(std::span<std::byte> scratch, size_t needed) {
  if (scratch.size() < needed)
    fail(ErrorKind::internal, "gemm: scratch has {} bytes, expected {}", scratch.size(), needed);
  const uintptr_t at = reinterpret_cast<uintptr_t>(scratch.data());
  return reinterpret_cast<float*>((at + kSlackBytes - 1) / kSlackBytes * kSlackBytes);
}

}  // namespace

const Kernels& native_kernels() {
  static const Kernels& best = [&]() -> const Kernels& {
    for (const Kernels* k : {avx512_kernels(), avx2_kernels(), neon_kernels()})
      if (k) return *k;
    return *portable_kernels();
  }();
  return best;
}

namespace {

/// A stack is worth spreading over the threads whole products at a time.
bool by_product(const GemmBatch& batch) {
  return batch.count >= thread_count() && thread_count() > 1 && !in_parallel();
}

void run_one(const Kernels& kernels, const Gemm& g, int threads, float* scratch) {
  const Run run(kernels, g, threads, scratch);
  switch (run.plan.mode) {
    case Mode::row_kernels:
      run.row_kernels();
      break;
    case Mode::few_rows:
      run.few_rows();
      break;
    case Mode::shared_b:
      run.shared_b();
      break;
  }
  if (g.symmetric) {
    if (g.c.dtype == DType::bf16) {
      mirror<bf16>(g);
    } else {
      mirror<float>(g);
    }
  }
}

Gemm product(const Gemm& g, const GemmBatch& batch, int64_t i) {
  Gemm one = g;
  one.a.data = offset_elems(g.a.data, g.a.dtype, i * batch.a_stride);
  one.b.data = offset_elems(g.b.data, g.b.dtype, i * batch.b_stride);
  one.c.data = offset_elems(g.c.data, g.c.dtype, i * batch.c_stride);
  if (g.e.data) one.e.data = offset_elems(g.e.data, g.e.dtype, i * batch.e_stride);
  return one;
}

int usable_threads() {
  return in_parallel() ? 1 : thread_count();
}

}  // namespace

size_t scratch_bytes(const Kernels& kernels, const Gemm& g, const GemmBatch& batch) {
  const int64_t floats = by_product(batch) ? make_plan(kernels, g, 1).total() * thread_count()
                                           : make_plan(kernels, g, usable_threads()).total();
  return static_cast<size_t>(floats) * sizeof(float) + kSlackBytes;
}

void gemm_with(const Kernels& kernels,
               const Gemm& g,
               const GemmBatch& batch,
               std::span<std::byte> scratch) {
  check(g);
  if (batch.count < 0) fail(ErrorKind::shape, "gemm: a stack of {} products", batch.count);
  if (g.M == 0 || g.N == 0) return;
  float* memory = aligned(scratch, scratch_bytes(kernels, g, batch));
  if (by_product(batch)) {
    const int64_t each = make_plan(kernels, g, 1).total();
    parallel_parts(batch.count, batch.count, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        run_one(kernels, product(g, batch, i), 1, memory + thread_index() * each);
    });
  } else {
    for (int64_t i = 0; i < batch.count; ++i)
      run_one(kernels, product(g, batch, i), usable_threads(), memory);
  }
}

}  // namespace gemm_detail

size_t gemm_scratch_bytes(const Gemm& g) {
  return gemm_detail::scratch_bytes(gemm_detail::native_kernels(), g);
}

size_t gemm_batched_scratch_bytes(const Gemm& g, const GemmBatch& batch) {
  return gemm_detail::scratch_bytes(gemm_detail::native_kernels(), g, batch);
}

void gemm(const Gemm& g, std::span<std::byte> scratch) {
  gemm_batched(g, GemmBatch{}, scratch);
}

void gemm_batched(const Gemm& g, const GemmBatch& batch, std::span<std::byte> scratch) {
  gemm_detail::gemm_with(gemm_detail::native_kernels(), g, batch, scratch);
}

std::string_view gemm_kernel_name() {
  return gemm_detail::native_kernels().name;
}

}  // namespace tightloop
