// The fused convolution on CPU in the tap form: a part of the line of cells at a time, lanes side by side along it; one
// transform for each pixel, a few multiply-adds for each row and column of the kernel, no patch ever formed.
#include <vector>

#include "common/gemm_tile.h"
#include "common/integers.h"
#include "common/parallel.h"
#include "common/workspace.h"
#include "patch/tap_plan.h"
#include "patch/tap_tile.h"

namespace dctps {
namespace DCTPS_ISA {
namespace {

// Filters that are combined at a time, as many as the rows of a block of product().
constexpr int64_t kFilters = kBlockRows;
// Filters or channels that are stored at a time: whole squares for layouts with neighbouring channels.
template <class A>
constexpr int64_t kStored = kLanes<A> > kFilters ? kLanes<A> : kFilters;

// Larger tiles repeat less work at their edges, smaller ones stay nearer: measured, 1.5 MiB is 30% faster than 0.5 MiB
// at 512 channels. More only where a tile would be mostly edge.
constexpr int64_t kTileBytes = 3 << 19, kMostTileBytes = 3 << 20;
constexpr int64_t kFewestVectors = 16, kMostVectors = 64;

// Rows of cells an odd number of cache lines apart, so that they do not meet in one set of the cache.
template <class A>
int64_t row_pitch(int64_t cells) {
  constexpr int64_t kLine = 64 / sizeof(A);
  return (round_up(cells, kLine) / kLine | 1) * kLine;
}

// Memory of a thread, dealt out in pieces: once to count, with no memory, and once for good.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    T* const piece = memory_ ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
    bytes_ += round_up(count * int64_t(sizeof(T)), 64);
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Sizes that both directions share.
template <class E>
struct Shape {
  using A = Accumulator<E>;
  TapSpace space;
  int64_t groups, channels, filters;  // of a group
  int64_t m, planes;
  std::shared_ptr<const TapPlan<A>> plan;  // null: no DCT part
  A alpha;
  int64_t most_inner[2] = {0, 0};  // of a group's parts: values for each cell between reduce and expand

  Shape(const ConvGeometry& g, int64_t batch, const Images& x, const Images& y, const void* alpha_pointer,
        bool transforms)
      : space(g, batch, x, y),
        groups(g.groups),
        channels(x.channels / g.groups),
        filters(y.channels / g.groups),
        m(y.channels),
        planes(space.planes()),
        plan(transforms ? get_tap_plan<A>({g.kernel_height, g.kernel_width, channels, m, groups}) : nullptr),
        alpha(alpha_pointer ? *static_cast<const A*>(alpha_pointer) : A(0)) {
    for (int64_t group = 0; plan && group < groups; ++group) {
      for (int part : {0, 1}) {
        most_inner[part] = std::max(most_inner[part], plan->parts[size_t(group)][size_t(part)].inner());
      }
    }
  }

  // Cells of a tile that holds `values` accumulators for each cell and for each of `reach` cells around them.
  int64_t tile_cells(int64_t values, int64_t reach) const {
    constexpr int64_t L = kLanes<A>, kUnit = kTapVectors * L;
    const int64_t fitting = kTileBytes / int64_t(sizeof(A)) / values - reach;
    const int64_t most = kMostTileBytes / int64_t(sizeof(A)) / values - reach;
    int64_t cells = std::max(std::min(fitting, kMostVectors * L), std::min(2 * reach, most));
    cells = std::max(cells, kFewestVectors * L);
    const int64_t tiles = (space.cells + cells - 1) / cells;  // of about the same size
    return round_up((space.cells + tiles - 1) / tiles, kUnit);
  }

  // The tap that a column of S stands for, and its channel.
  void place(int32_t column, int64_t& tap, int64_t& channel) const {
    tap = column / int32_t(channels);
    channel = column - tap * channels;
  }
  const TapAxis::Tap& row_tap(int64_t tap) const {
    return space.rows.taps[size_t(tap) / space.columns.taps.size()];
  }
  const TapAxis::Tap& column_tap(int64_t tap) const {
    return space.columns.taps[size_t(tap) % space.columns.taps.size()];
  }
  int64_t tap_plane(int64_t tap) const { return space.plane(row_tap(tap).plane, column_tap(tap).plane); }
  int64_t tap_shift(int64_t tap) const {
    return row_tap(tap).shift * space.columns.pitch + column_tap(tap).shift;
  }
};

// Channels c and C-1-c of row `row`, added (part 0) or subtracted (part 1).
template <class A>
DCTPS_INLINE Vec<A> folded(const A* x, int64_t pitch, int64_t channels, int part, int64_t row,
                           int64_t vector) {
  const Vec<A> low = load(x + row * pitch + vector * kLanes<A>);
  const Vec<A> high = load(x + (channels - 1 - row) * pitch + vector * kLanes<A>);
  return part ? low - high : low + high;
}

// ---------------------------------------------------------------------------------------------------- forward

template <class E>
struct ForwardTile {
  using A = Accumulator<E>;
  static constexpr int64_t L = kLanes<A>;
  const Conv2dForwardArgs& args;
  const Shape<E>& shape;
  int64_t cells;             // of y in a tile
  int64_t summed, x_cells;   // that across() makes; that the taps of those see
  int64_t x_pitch, pitch;    // of rows of x_cells and the like; of rows of y
  A *x, *inner, *z, *h, *y;  // [planes][channels], [planes][inner] and [kFilters][2][planes] rows of x_cells;
                             // [2][row planes] rows of `summed`; [kStored] rows of y
  TapEntry<A>* entries;      // of one row of S
  TapTerm<A>* terms;
  Cells source, target;

  static int64_t values(const Shape<E>& s) {
    return s.planes * (s.channels + s.most_inner[0] + s.most_inner[1] + 2 * kFilters) + kStored<A>;
  }

  ForwardTile(const Conv2dForwardArgs& arguments, const Shape<E>& s) : args(arguments), shape(s) {
    cells = s.tile_cells(values(s), s.space.reach());
    summed = round_up(cells + s.space.row_reach(), kTapVectors * L);
    x_cells = round_up(summed + s.space.columns.most_shift, L);
    x_pitch = row_pitch<A>(x_cells);
    pitch = row_pitch<A>(cells);
    Pieces counted(nullptr);
    take(counted);
    Pieces pieces(thread_workspace(size_t(counted.bytes())));
    take(pieces);
  }

  void take(Pieces& pieces) {
    int64_t longest = 0;
    for (int64_t k = 0; k < shape.m && args.s.nnz; ++k) {
      longest = std::max(longest, int64_t(args.s.crow[k + 1] - args.s.crow[k]));
    }
    x = pieces.take<A>(shape.planes * shape.channels * x_pitch);
    inner = pieces.take<A>(shape.planes * (shape.most_inner[0] + shape.most_inner[1]) * x_pitch);
    z = pieces.take<A>(shape.plan ? kFilters * 2 * shape.planes * x_pitch : 0);
    h = pieces.take<A>(2 * int64_t(shape.space.rows.origins.size()) * x_pitch);
    y = pieces.take<A>(kStored<A> * pitch);
    entries = pieces.take<TapEntry<A>>(longest);
    terms = pieces.take<TapTerm<A>>(std::max(args.geometry.kernel_height, args.geometry.kernel_width) + 1);
  }

  void run(int64_t tile) {
    const int64_t first = tile * cells;
    shape.space.output_runs(args.y, first, cells, target.runs);
    if (target.runs.empty()) return;
    target.prepare(args.y, cells);
    for (int64_t group = 0; group < shape.groups; ++group) {
      for (int64_t plane = 0; plane < shape.planes; ++plane) {
        shape.space.input_runs(args.x, plane, first, x_cells, source.runs);
        source.prepare(args.x, x_cells);
        load_cells<E>(args.x, source, x_cells, group * shape.channels, shape.channels,
                      x + plane * shape.channels * x_pitch, x_pitch);
      }
      if (shape.plan) reduce(group);
      for (int64_t f = 0; f < shape.filters; f += kStored<A>) {
        const int64_t count = std::min(kStored<A>, shape.filters - f);
        if (shape.plan) {
          for (int64_t j = 0; j < count; j += kFilters)
            transform(group, f + j, std::min(kFilters, count - j), y + j * pitch);
        }
        for (int64_t j = 0; j < count; ++j) finish(group * shape.filters + f + j, y + j * pitch);
        store_cells<E>(args.y, target, cells, group * shape.filters + f, count, y, pitch);
      }
    }
  }

  A* inner_rows(int64_t plane, int part) const {
    return inner +
           (plane * (shape.most_inner[0] + shape.most_inner[1]) + (part ? shape.most_inner[0] : 0)) * x_pitch;
  }

  void reduce(int64_t group) const {
    for (int64_t plane = 0; plane < shape.planes; ++plane) {
      const A* from = x + plane * shape.channels * x_pitch;
      for (int part : {0, 1}) {
        const auto& factors = shape.plan->parts[size_t(group)][size_t(part)];
        if (!factors.rank) continue;
        A* to = inner_rows(plane, part);
        auto store_row = [=, this](int64_t row, int64_t v, Vec<A> sum) {
          store(to + row * x_pitch + v * L, sum);
        };
        auto multiply = [&](auto load_row) {
          product<A>({factors.reduce.data(), factors.depth, 1}, factors.rank, factors.depth, x_cells / L,
                     load_row, store_row);
        };
        if (part) {
          multiply(
              [=, this](int64_t c, int64_t v) { return folded(from, x_pitch, shape.channels, 1, c, v); });
        } else {
          multiply(
              [=, this](int64_t c, int64_t v) { return folded(from, x_pitch, shape.channels, 0, c, v); });
        }
      }
    }
  }

  // D patch for filters f .. f + count - 1 of a group, times alpha, plus the bias.
  void transform(int64_t group, int64_t f, int64_t count, A* to) {
    const int64_t z_rows = shape.planes * x_pitch;
    for (int64_t plane = 0; plane < shape.planes; ++plane) {
      const A* from = x + plane * shape.channels * x_pitch;
      for (int part : {0, 1}) {
        const auto& factors = shape.plan->parts[size_t(group)][size_t(part)];
        const A* rows = inner_rows(plane, part);
        A* sums = z + part * z_rows + plane * x_pitch;
        auto store_row = [=](int64_t row, int64_t v, Vec<A> sum) {
          store(sums + row * 2 * z_rows + v * L, sum);
        };
        auto multiply = [&](auto load_row) {
          product<A>({factors.expand.data() + f * factors.inner(), factors.inner(), 1}, count,
                     factors.inner(), x_cells / L, load_row, store_row);
        };
        if (factors.rank) {
          multiply([=, this](int64_t r, int64_t v) { return load(rows + r * x_pitch + v * L); });
        } else if (part) {
          multiply(
              [=, this](int64_t c, int64_t v) { return folded(from, x_pitch, shape.channels, 1, c, v); });
        } else {
          multiply(
              [=, this](int64_t c, int64_t v) { return folded(from, x_pitch, shape.channels, 0, c, v); });
        }
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      combine(group * shape.filters + f + j, z + j * 2 * z_rows, z + (j * 2 + 1) * z_rows, to + j * pitch);
    }
  }

  // Sums over the taps of filter k.
  void combine(int64_t k, const A* re, const A* im, A* to) {
    const TapAxis &rows = shape.space.rows, &columns = shape.space.columns;
    const int64_t row_planes = int64_t(rows.origins.size()), width = int64_t(columns.taps.size());
    const int64_t height = int64_t(rows.taps.size());
    A* const h_im = h + row_planes * x_pitch;
    const A* across = shape.plan->across.data() + 2 * k * width;
    for (int64_t row_plane = 0; row_plane < row_planes; ++row_plane) {
      auto offset = [&](int64_t b) {
        const TapAxis::Tap& tap = columns.taps[size_t(b)];
        return shape.space.plane(row_plane, tap.plane) * x_pitch + tap.shift;
      };
      int count = 0;
      for (int64_t b = 0; b < width; ++b) {
        if (b != width / 2) terms[count++] = {across[2 * b], across[2 * b + 1], offset(b)};
      }
      const int64_t center = offset(width / 2);
      rotated_sum<A>(re, im, &center, terms, count, summed / L, h + row_plane * x_pitch,
                     h_im + row_plane * x_pitch);
    }
    const A* down = shape.plan->down.data() + 2 * k * height;
    auto offset = [&](int64_t a) {
      const TapAxis::Tap& tap = rows.taps[size_t(a)];
      return tap.plane * x_pitch + tap.shift * columns.pitch;
    };
    int count = 0;
    for (int64_t a = 0; a < height; ++a) {
      if (a != height / 2) terms[count++] = {down[2 * a], down[2 * a + 1], offset(a)};
    }
    if (shape.plan->turns) terms[count++] = {A(0), down[2 * (height / 2) + 1], offset(height / 2)};
    const bool swaps = shape.plan->swaps[size_t(k)];
    real_sum<A>(swaps ? h_im : h, swaps ? h : h_im, offset(height / 2), terms, count, shape.alpha, bias(k),
                cells / L, to);
  }

  A bias(int64_t k) const { return args.bias ? static_cast<const A*>(args.bias)[k] : A(0); }

  // The sparse part of filter k.
  void finish(int64_t k, A* to) {
    if (!shape.plan) {
      for (int64_t p = 0; p < cells; ++p) to[p] = bias(k);
    }
    const SparseMatrix& s = args.s;
    if (!s.nnz || s.crow[k] == s.crow[k + 1]) return;
    int64_t count = 0;
    for (int32_t t = s.crow[k]; t < s.crow[k + 1]; ++t) {
      int64_t tap, channel;
      shape.place(s.col[t], tap, channel);
      entries[count++] = {static_cast<const A*>(s.values)[t],
                          (shape.tap_plane(tap) * shape.channels + channel) * x_pitch + shape.tap_shift(tap)};
    }
    add_entries<A>(entries, count, x, cells / L, to);
  }
};

template <class E>
void forward(const Conv2dForwardArgs& args) {
  if (!args.batch) return;
  const Shape<E> shape(args.geometry, args.batch, args.x, args.y, args.alpha, args.alpha != nullptr);
  const int64_t cells = shape.tile_cells(ForwardTile<E>::values(shape), shape.space.reach());
  parallel_chunks((shape.space.cells + cells - 1) / cells, [&] {
    return [tile = ForwardTile<E>(args, shape)](int64_t number) mutable { tile.run(number); };
  });
}

// --------------------------------------------------------------------------------------------------- backward

// A nonzero of S with all that backward needs to know of it.
struct PlacedEntry {
  int32_t row, number;  // number: in CSR order
  int64_t shift;        // of its tap
};

// The nonzeros sorted by (group of the row, plane of the tap, channel).
template <class E>
struct PlacedEntries {
  std::vector<PlacedEntry> entries;
  std::vector<int64_t> first;  // [groups][planes][channels], and the end

  PlacedEntries(const Shape<E>& shape, const SparseMatrix& s) {
    first.assign(size_t(shape.groups * shape.planes * shape.channels + 1), 0);
    entries.resize(size_t(s.nnz));
    auto each = [&](const auto& body) {
      for (int64_t k = 0; k < s.m; ++k) {
        for (int32_t t = s.crow[k]; t < s.crow[k + 1]; ++t) {
          int64_t tap, channel;
          shape.place(s.col[t], tap, channel);
          const int64_t plane = (k / shape.filters) * shape.planes + shape.tap_plane(tap);
          body(size_t(plane * shape.channels + channel), PlacedEntry{int32_t(k), t, shape.tap_shift(tap)});
        }
      }
    };
    each([&](size_t list, const PlacedEntry&) { ++first[list + 1]; });
    for (size_t list = 1; list < first.size(); ++list) first[list] += first[list - 1];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    each([&](size_t list, const PlacedEntry& entry) { entries[size_t(next[list]++)] = entry; });
  }
};

// A part of the line in the place of dx; it needs dy there and a reach before.
template <class E>
struct BackwardTile {
  using A = Accumulator<E>;
  static constexpr int64_t L = kLanes<A>;
  // Filters whose part is added to `inner` at a time, folded channels that are expanded at a time.
  static constexpr int64_t kSummed = 4 * kFilters;
  const Conv2dBackwardArgs& args;
  const Shape<E>& shape;
  const PlacedEntries<E>& placed;
  bool wants_dx;
  int64_t cells;            // of dx in a tile
  int64_t before, across;   // cells before it: of dy, of the sums over rows
  int64_t dy_pitch, pitch;  // of rows of before + cells; of rows of across + cells
  A *dy, *h, *z,
      *inner;  // [filters] rows of dy; [2][row planes], [kSummed][2][planes] and [planes][inner] rows
  A *dx, *x, *even, *odd;  // [kStored] rows each
  A *dvalues, *dbias;      // of this tile: [nnz] in the order of `placed`, [m]
  TapEntry<A>* entries;    // of one channel
  TapTerm<A>* terms;
  double dalpha = 0;
  std::vector<Cells> x_cells, dx_cells;  // of each plane
  Cells dy_cells;

  static int64_t values(const Shape<E>& s) {
    return s.filters + s.planes * (s.most_inner[0] + s.most_inner[1] + 2 * kSummed) + 4 * kStored<A>;
  }

  BackwardTile(const Conv2dBackwardArgs& arguments, const Shape<E>& s, const PlacedEntries<E>& p,
               bool dx_wanted)
      : args(arguments),
        shape(s),
        placed(p),
        wants_dx(dx_wanted),
        x_cells(size_t(s.planes)),
        dx_cells(size_t(s.planes)) {
    cells = s.tile_cells(values(s), s.space.reach());
    across = round_up(s.space.columns.most_shift, L);
    before = round_up(across + s.space.row_reach(), L);
    dy_pitch = row_pitch<A>(before + cells);
    pitch = row_pitch<A>(round_up(across + cells, kTapVectors * L));
    Pieces counted(nullptr);
    take(counted);
    Pieces pieces(thread_workspace(size_t(counted.bytes())));
    take(pieces);
  }

  void take(Pieces& pieces) {
    int64_t longest = 0;
    for (size_t list = 0; list + 1 < placed.first.size(); ++list) {
      longest = std::max(longest, placed.first[list + 1] - placed.first[list]);
    }
    // Sums over rows are made in whole groups of vectors, and may read a few cells too many.
    dy = pieces.take<A>(shape.filters * dy_pitch + kTapVectors * L);
    h = pieces.take<A>(2 * int64_t(shape.space.rows.origins.size()) * pitch);
    z = pieces.take<A>(shape.plan ? kSummed * 2 * shape.planes * pitch : 0);
    inner = pieces.take<A>(shape.planes * (shape.most_inner[0] + shape.most_inner[1]) * pitch);
    for (A** rows : {&dx, &x, &even, &odd}) *rows = pieces.take<A>(kStored<A> * pitch);
    dvalues = pieces.take<A>(args.sums.dvalues ? args.s.nnz : 0);
    dbias = pieces.take<A>(shape.m);
    entries = pieces.take<TapEntry<A>>(longest);
    terms = pieces.take<TapTerm<A>>(std::max(args.geometry.kernel_height, args.geometry.kernel_width));
  }

  void run(int64_t tile) {
    const int64_t begin = tile * cells;
    dalpha = 0;
    if (args.sums.dvalues) std::memset(dvalues, 0, size_t(args.s.nnz) * sizeof(A));
    shape.space.output_runs(args.dy, begin - before, before + cells, dy_cells.runs);
    dy_cells.prepare(args.dy, before + cells);
    for (int64_t plane = 0; plane < shape.planes; ++plane) {
      for (auto [images, of_planes] : {std::pair{&args.x, &x_cells}, std::pair{&args.dx, &dx_cells}}) {
        Cells& of_plane = (*of_planes)[size_t(plane)];
        shape.space.input_runs(*images, plane, begin, cells, of_plane.runs);
        of_plane.prepare(*images, cells);
      }
    }
    for (int64_t group = 0; group < shape.groups; ++group) {
      load_cells<E>(args.dy, dy_cells, before + cells, group * shape.filters, shape.filters, dy, dy_pitch);
      if (args.sums.dbias) {
        for (int64_t f = 0; f < shape.filters; ++f) {
          dbias[group * shape.filters + f] = cell_sum<A>(dy + f * dy_pitch + before, cells / L);
        }
      }
      if (shape.plan) gather(group);
      for (int64_t plane = 0; plane < shape.planes; ++plane) spread(group, plane);
    }
  }

  A* inner_rows(int64_t plane, int part) const {
    return inner +
           (plane * (shape.most_inner[0] + shape.most_inner[1]) + (part ? shape.most_inner[0] : 0)) * pitch;
  }

  // The transpose of ForwardTile::transform: from dy to `inner`.
  void gather(int64_t group) {
    for (int64_t f = 0; f < shape.filters; f += kSummed) {
      const int64_t count = std::min(kSummed, shape.filters - f);
      for (int64_t j = 0; j < count; ++j) combine(group, f + j, z + j * 2 * shape.planes * pitch);
      for (int64_t plane = 0; plane < shape.planes; ++plane) {
        for (int part : {0, 1}) {
          const auto& factors = shape.plan->parts[size_t(group)][size_t(part)];
          const A* from = z + (part * shape.planes + plane) * pitch;
          const int64_t row_length = 2 * shape.planes * pitch;
          A* to = inner_rows(plane, part);
          auto load_row = [=](int64_t row, int64_t v) { return load(from + row * row_length + v * L); };
          auto multiply = [&](auto store_row) {
            product<A>({factors.expand.data() + f * factors.inner(), 1, factors.inner()}, factors.inner(),
                       count, cells / L, load_row, store_row);
          };
          if (f == 0) {
            multiply([=, this](int64_t row, int64_t v, Vec<A> sum) { store(to + row * pitch + v * L, sum); });
          } else {
            multiply([=, this](int64_t row, int64_t v, Vec<A> sum) {
              A* const at = to + row * pitch + v * L;
              store(at, load(at) + sum);
            });
          }
        }
      }
    }
  }

  // The transpose of ForwardTile::combine: to [2][planes] rows.
  void combine(int64_t group, int64_t f, A* to) {
    const TapAxis &rows = shape.space.rows, &columns = shape.space.columns;
    const int64_t row_planes = int64_t(rows.origins.size()), width = int64_t(columns.taps.size());
    const int64_t height = int64_t(rows.taps.size()), k = group * shape.filters + f;
    A* const h_im = h + row_planes * pitch;
    const A* down = shape.plan->down.data() + 2 * k * height;
    const bool swaps = shape.plan->swaps[size_t(k)];
    for (int64_t row_plane = 0; row_plane < row_planes; ++row_plane) {
      int count = 0;
      for (int64_t a = 0; a < height; ++a) {
        const TapAxis::Tap& tap = rows.taps[size_t(a)];
        if (tap.plane == row_plane)
          terms[count++] = {down[2 * a], down[2 * a + 1], -tap.shift * columns.pitch};
      }
      A *re = h + row_plane * pitch, *im = h_im + row_plane * pitch;
      spread_sum<A>(dy + f * dy_pitch + before - across, terms, count,
                    round_up(across + cells, kTapVectors * L) / L, swaps ? im : re, swaps ? re : im);
    }
    const A* turns = shape.plan->across.data() + 2 * k * width;
    for (int64_t row_plane = 0; row_plane < row_planes; ++row_plane) {
      for (int64_t column_plane = 0; column_plane < int64_t(columns.origins.size()); ++column_plane) {
        int count = 0;
        int64_t center = 0;
        bool has_center = false;
        for (int64_t b = 0; b < width; ++b) {
          const TapAxis::Tap& tap = columns.taps[size_t(b)];
          if (tap.plane != column_plane) continue;
          if (b == width / 2) {
            has_center = true;
            center = across - tap.shift;
          } else {
            terms[count++] = {turns[2 * b], -turns[2 * b + 1], across - tap.shift};
          }
        }
        const int64_t plane = shape.space.plane(row_plane, column_plane);
        rotated_sum<A>(h + row_plane * pitch, h_im + row_plane * pitch, has_center ? &center : nullptr, terms,
                       count, cells / L, to + plane * pitch, to + (shape.planes + plane) * pitch);
      }
    }
  }

  // dx of a plane, from `inner` and the sparse part, and what it adds to dvalues and dalpha.
  void spread(int64_t group, int64_t plane) {
    const int64_t folds = (shape.channels + 1) / 2;
    for (int64_t j = 0; j < folds; j += kStored<A>) {
      const int64_t count = std::min(kStored<A>, folds - j);
      if (shape.plan) {
        for (int part : {0, 1}) unreduce(group, plane, part, j, count, part ? odd : even);
      }
      // Channels j .. j + count - 1, then those that they were folded with, from the last to the first.
      finish(group, plane, j, count, [&](int64_t i) { return i; }, false);
      const int64_t mirrored = std::min(count, shape.channels / 2 - j);  // not a middle channel
      if (mirrored > 0) {
        finish(
            group, plane, shape.channels - j - mirrored, mirrored,
            [&](int64_t i) { return mirrored - 1 - i; }, true);
      }
    }
  }

  void unreduce(int64_t group, int64_t plane, int part, int64_t j, int64_t most, A* to) {
    const auto& factors = shape.plan->parts[size_t(group)][size_t(part)];
    const int64_t count = std::min(most, factors.depth - j);
    const A* from = inner_rows(plane, part);
    for (int64_t c = std::max(count, int64_t(0)); c < most; ++c)
      std::memset(to + c * pitch, 0, size_t(cells) * sizeof(A));
    if (count <= 0) return;
    if (!factors.rank) {
      for (int64_t c = 0; c < count; ++c) {
        std::memcpy(to + c * pitch, from + (j + c) * pitch, size_t(cells) * sizeof(A));
      }
      return;
    }
    product<A>(
        {factors.reduce.data() + j, 1, factors.depth}, count, factors.rank, cells / L,
        [=, this](int64_t row, int64_t v) { return load(from + row * pitch + v * L); },
        [=, this](int64_t row, int64_t v, Vec<A> sum) { store(to + row * pitch + v * L, sum); });
  }

  template <class Row>
  void finish(int64_t group, int64_t plane, int64_t channel, int64_t count, const Row& row,
              bool is_mirrored) {
    const int64_t image_channel = group * shape.channels + channel;
    if (args.sums.dvalues || args.sums.dalpha) {
      load_cells<E>(args.x, x_cells[size_t(plane)], cells, image_channel, count, x, pitch);
    }
    for (int64_t i = 0; i < count; ++i) {
      A* const to = dx + i * pitch;
      const A* from = x + i * pitch;
      if (shape.plan) {
        const A *e = even + row(i) * pitch, *o = odd + row(i) * pitch;
        const bool is_middle = 2 * (channel + i) == shape.channels - 1;  // folded onto itself
        const A odd_sign = is_mirrored ? A(-1) : A(1), even_sign = is_middle ? A(2) : A(1);
        Vec<A> products{};
        for (int64_t p = 0; p < cells; p += L) {
          const Vec<A> part = load(e + p) * even_sign + load(o + p) * odd_sign;
          if (args.sums.dalpha) products += part * load(from + p);
          store(to + p, part * shape.alpha);
        }
        if (args.sums.dalpha) dalpha += double(lanes_total<A>(products));
      } else {
        std::memset(to, 0, size_t(cells) * sizeof(A));
      }
      add_sparse((group * shape.planes + plane) * shape.channels + channel + i, group * shape.filters, from,
                 to);
    }
    if (wants_dx) store_cells<E>(args.dx, dx_cells[size_t(plane)], cells, image_channel, count, dx, pitch);
  }

  // S^T dy and the SDDMM, for one channel.
  void add_sparse(int64_t list, int64_t first_filter, const A* from, A* to) {
    const int64_t begin = placed.first[size_t(list)], end = placed.first[size_t(list) + 1];
    if (begin == end) return;
    const A* values = static_cast<const A*>(args.s.values);
    for (int64_t t = begin; t < end; ++t) {
      const PlacedEntry& entry = placed.entries[size_t(t)];
      entries[t - begin] = {values ? values[entry.number] : A(0),
                            (entry.row - first_filter) * dy_pitch + before - entry.shift};
    }
    if (wants_dx) add_entries<A>(entries, end - begin, dy, cells / L, to);
    if (!args.sums.dvalues) return;
    for (int64_t t = begin; t < end; ++t) {
      dvalues[t] += cell_product<A>(dy + entries[t - begin].offset, from, cells / L);
    }
  }
};

template <class E>
void backward(const Conv2dBackwardArgs& args) {
  using A = Accumulator<E>;
  if (!args.batch) return;
  const bool wants_dx = args.dx.data;
  A* const dvalues = static_cast<A*>(args.sums.dvalues);
  A* const dbias = static_cast<A*>(args.sums.dbias);
  const Shape<E> shape(args.geometry, args.batch, args.x, args.dy, args.alpha,
                       args.alpha && (wants_dx || args.sums.dalpha));
  const PlacedEntries<E> placed(shape, args.s);
  const int64_t cells = shape.tile_cells(BackwardTile<E>::values(shape), shape.space.reach());
  OrderedSections sections(1);
  std::vector<A> sums(dvalues ? size_t(args.s.nnz) : 0);
  parallel_chunks((shape.space.cells + cells - 1) / cells, [&] {
    return [&, tile = BackwardTile<E>(args, shape, placed, wants_dx)](int64_t number) mutable {
      tile.run(number);
      sections.in_turn(0, number, [&] {
        for (size_t t = 0; t < sums.size(); ++t) sums[t] += tile.dvalues[t];
        for (int64_t k = 0; dbias && k < shape.m; ++k) dbias[k] += tile.dbias[k];
        if (args.sums.dalpha) *args.sums.dalpha += tile.dalpha;
      });
    };
  });
  for (size_t t = 0; t < sums.size(); ++t) dvalues[placed.entries[t].number] = sums[t];
}

}  // namespace

void conv2d_taps_forward_cpu(const Conv2dForwardArgs& args) {
  dispatch(args.dtype, [&](auto element) { forward<decltype(element)>(args); });
}

void conv2d_taps_backward_cpu(const Conv2dBackwardArgs& args) {
  dispatch(args.dtype, [&](auto element) { backward<decltype(element)>(args); });
}

}  // namespace DCTPS_ISA
}  // namespace dctps
