// The fused convolution on CPU in the tap form: a part of the line of cells at a time, lanes side by side along it; one
// transform for each pixel, a few multiply-adds for each row and column of the kernel, no patch ever formed.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common/gemm_tile.h"
#include "common/integers.h"
#include "common/parallel.h"
#include "common/types.h"
#include "common/workspace.h"
#include "patch/tap_plan.h"
#include "patch/tap_tile.h"

namespace dctps {
namespace DCTPS_ISA {
namespace {

// Filters that are expanded at a time, as many as the rows of a block of product().
constexpr int64_t kFilters = kBlockRows;
// Filters or channels that are stored at a time: whole squares for layouts with neighbouring channels.
template <class A>
constexpr int64_t kStored = kLanes<A> > kFilters ? kLanes<A> : kFilters;

// Tiles of the backward pass: larger ones repeat less work at their edges, smaller ones stay nearer: measured, 1.5 MiB is
// 30% faster than 0.5 MiB at 512 channels. More where a tile would be mostly edge. Two at least, for a second thread: the
// number of threads may not decide, because their sums are taken tile by tile.
constexpr int64_t kTileBytes = 3 << 19, kMostTileBytes = 3 << 20, kFewestTiles = 2;
constexpr int64_t kFewestVectors = 16, kMostVectors = 64;
// Steps of the forward pass: longer ones spread what each filter costs by itself over more cells. But a row of S reads
// x from everywhere: where there is much to read, x is to stay in half of the second-level cache. Measured, that is 8%
// with 256 channels at 1%.
constexpr int64_t kMostStepVectors = 60, kStepBytes = 2 << 20, kNearBytes = 1 << 19;
constexpr int64_t kManyEntries = 16;  // of a filter, on average
constexpr int64_t kChunksPerWorker = 4;
// Sums of the backward pass make so many cells at a time.
template <class A>
constexpr int64_t kUnit = kTapVectors * kLanes<A>;

// Rows of cells an odd number of cache lines apart, so that they do not meet in one set of the cache, and with room for
// the vector that may be overwritten behind them.
template <class A>
int64_t row_pitch(int64_t cells) {
  constexpr int64_t kLine = 64 / sizeof(A);
  return (ceil_div(cells + kLanes<A>, kLine) | 1) * kLine;
}

// Images that do not stay in the caches from one use to the next. (Smaller results are better left there: the next layer
// of a network reads them.)
constexpr int64_t kLargeBytes = 8 << 20;
// Images that are fetched for the next tile. Measured on AVX2, whose steps are shorter: 1 to 14% faster where they come
// from memory or the third cache; up to 6% slower below this size, and where they are in the second.
constexpr int64_t kFetchedBytes = kVectorBytes == 64 ? kLargeBytes : 1 << 20;

bool has_bytes(const Images& images, int64_t batch, DType dtype, int64_t bytes) {
  return images.values(batch) * element_bytes(dtype) >= bytes;
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

// How far away a tap is, and where it sees pixels.
struct Place {
  int64_t offset;
  SeenLanes lanes;
};

// Sizes that both directions share.
template <class A>
struct Shape {
  static constexpr int64_t kSeenCells = kFewVectors * kLanes<A>;  // that SeenLanes are for
  TapSpace space;
  int64_t groups, channels, filters;  // of a group
  int64_t m, planes;
  std::shared_ptr<const TapPlan<A>> plan;  // null: no DCT part
  A alpha;
  int64_t most_inner[2] = {0, 0};  // of a group's parts: values for each cell between reduce and expand

  Shape(const ConvGeometry& g, int64_t batch, const Images& x, const Images& y, const void* alpha_pointer,
        bool transforms)
      : space(g, batch, x, y, kMasksLanes ? kSeenCells : 0),
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
    constexpr int64_t L = kLanes<A>;
    const int64_t fitting = kTileBytes / int64_t(sizeof(A)) / values - reach;
    const int64_t most = kMostTileBytes / int64_t(sizeof(A)) / values - reach;
    int64_t cells = std::max(std::min(fitting, kMostVectors * L), std::min(2 * reach, most));
    const int64_t all = space.input_cells();
    cells = std::max(std::min(cells, ceil_div(all, kFewestTiles)), kFewestVectors * L);
    return round_up(ceil_div(all, ceil_div(all, cells)), kUnit<A>);  // all tiles of about the same size
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
  // Whether seen(column of a line), of two vectors that begin in column `start`: the same in each two vectors behind.
  template <class Seen>
  SeenLanes seen_lanes(int64_t start, const Seen& seen) const {
    const int64_t L = kLanes<A>, pitch = space.columns.pitch;
    if (!space.columns.is_packed) return kAllLanes;
    LaneMask lanes[kFewVectors] = {};
    for (int64_t i = 0; i < kSeenCells; ++i) {
      if (seen(((start + i) % pitch + pitch) % pitch)) lanes[i / L] |= LaneMask(1u << i % L);
    }
    return {lanes[0], lanes[1]};
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

// A part of the line and some of the filters, at most `most` cells at a time. Each step makes as many cells of every
// kind, a reach behind those that they are made of; what later steps read again is kept: of x as it is, of Z and H for
// each filter.
template <class A>
struct ForwardTile {
  static constexpr int64_t L = kLanes<A>;
  static constexpr int64_t kStepUnit = Shape<A>::kSeenCells;  // of steps and chunks
  const Conv2dForwardArgs& args;
  const Shape<A>& shape;
  int64_t most, cells;                   // of any step, of this one
  int64_t first_filter, end_filter;      // of this run
  int64_t ahead, lag;                    // of Z before H, of H before y: the reach in columns and in rows
  int64_t x_before, z_before, h_before;  // cells that are kept of each: these reaches, in whole vectors
  // Rows of x_before + most, z_before + most, h_before + most, and most.
  int64_t x_pitch, z_pitch, h_pitch, pitch;
  A *x, *z, *h;          // [planes][all channels], [kFilters][2][planes] and [2][row planes] rows, as above
  A *inner, *y;          // [planes][inner] and [kStored] rows of `most`
  A *z_kept, *h_kept;    // [m][2][planes][z_before], [m][2][row planes][h_before]
  Place* places;         // [n]: what a column of S sees, in a group's x
  TapEntry<A>* entries;  // of one filter
  TapTerm<A>* terms;
  std::vector<SeenLanes> lanes;   // of each column of the kernel
  std::vector<Cells<A>> sources;  // of each plane, of the next step
  Cells<A> target;
  bool fetches;  // x for the next step, while this one is made

  ForwardTile(const Conv2dForwardArgs& arguments, const Shape<A>& s, int64_t most_of_step)
      : args(arguments), shape(s), most(most_of_step), sources(size_t(s.planes)) {
    target.streaming = has_bytes(args.y, args.batch, args.dtype, kLargeBytes);
    fetches = has_bytes(args.x, args.batch, args.dtype, kFetchedBytes);
    ahead = columns_reach(s);
    lag = s.space.row_reach();
    x_before = round_up(lag + ahead, L);
    z_before = round_up(ahead, L);
    h_before = round_up(lag, L);
    x_pitch = row_pitch<A>(x_before + most);
    z_pitch = row_pitch<A>(z_before + most);
    h_pitch = row_pitch<A>(h_before + most);
    pitch = row_pitch<A>(most);
    Pieces counted(nullptr);
    take(counted);
    Pieces pieces(thread_workspace(size_t(counted.bytes())));
    take(pieces);
    for (const TapAxis::Tap& tap : s.space.columns.taps) {
      lanes.push_back(s.seen_lanes(-ahead, [&](int64_t o) { return tap.begin <= o && o < tap.end; }));
    }
    Place* place = places;
    for (int64_t tap = 0; args.s.nnz && tap * shape.channels < args.s.n; ++tap) {
      const int64_t first =
          shape.tap_plane(tap) * args.x.channels * x_pitch + x_before - lag - ahead + shape.tap_shift(tap);
      for (int64_t channel = 0; channel < shape.channels; ++channel) {
        *place++ = {first + channel * x_pitch, lanes[size_t(tap) % lanes.size()]};
      }
    }
  }

  // In whole vectors where rows are packed, so that those of y begin with one.
  static int64_t columns_reach(const Shape<A>& s) {
    return round_up(s.space.columns.most_shift, s.space.columns.is_packed ? L : 1);
  }

  static int64_t most_cells(const Conv2dForwardArgs& args, const Shape<A>& s) {
    const int64_t row_planes = int64_t(s.space.rows.origins.size()), channels = s.groups * s.channels;
    const int64_t columns = round_up(s.space.columns.most_shift, L), rows = round_up(s.space.row_reach(), L);
    const int64_t kept =
        s.planes * channels * (columns + rows) + 2 * s.m * (s.planes * columns + row_planes * rows);
    const int64_t each = s.planes * (channels + s.most_inner[0] + s.most_inner[1] + 2 * kFilters) +
                         2 * row_planes + kStored<A>;
    int64_t vectors = (kStepBytes / int64_t(sizeof(A)) - kept) / each / L;
    if (args.s.nnz >= kManyEntries * s.m) {
      const int64_t near = kNearBytes / int64_t(sizeof(A)) / (s.planes * channels) / L;
      vectors = std::min(vectors, near / kMostSums * kMostSums);
    }
    vectors = std::clamp(vectors, std::max(kFewestVectors, int64_t(kMostSums)), kMostStepVectors);
    return vectors / kFewVectors * kStepUnit;
  }

  void take(Pieces& pieces) {
    const int64_t row_planes = int64_t(shape.space.rows.origins.size());
    x = pieces.take<A>(shape.planes * args.x.channels * x_pitch);
    y = pieces.take<A>(kStored<A> * pitch);
    places = pieces.take<Place>(args.s.nnz ? args.s.n : 0);
    int64_t longest = 1;
    for (int64_t k = 0; k < shape.m && args.s.nnz; ++k) {
      longest = std::max(longest, int64_t(args.s.crow[k + 1] - args.s.crow[k]));
    }
    entries = pieces.take<TapEntry<A>>(longest + 2 * args.geometry.kernel_height);
    if (!shape.plan) return;
    inner = pieces.take<A>(shape.planes * (shape.most_inner[0] + shape.most_inner[1]) * pitch);
    z = pieces.take<A>(kFilters * 2 * shape.planes * z_pitch);
    h = pieces.take<A>(2 * row_planes * h_pitch);
    z_kept = pieces.take<A>(shape.m * 2 * shape.planes * z_before);
    h_kept = pieces.take<A>(shape.m * 2 * row_planes * h_before);
    terms = pieces.take<TapTerm<A>>(args.geometry.kernel_width);
  }

  // y of filters first_filter .. end_filter - 1 in cells begin .. end - 1.
  void run(int64_t begin, int64_t end, int64_t first_of_filters, int64_t end_of_filters) {
    first_filter = first_of_filters, end_filter = end_of_filters;
    const int64_t behind = lag + ahead, units = ceil_div(end + behind - begin, kStepUnit);
    const int64_t steps = ceil_div(units * kStepUnit, most);
    auto start = [=](int64_t number) { return begin + units * number / steps * kStepUnit; };
    find_x(begin - x_before, x_before + start(1) - begin);
    for (int64_t number = 0; number < steps; ++number) {
      const int64_t first = start(number), next = start(number + 1);
      if (number) keep_x();
      cells = next - first;
      load_x(number ? x_before : 0);
      find_x(next, start(number + 2) - next);
      shape.space.output_runs(args.y, first - behind, begin, std::min(end, first - behind + cells),
                              target.runs);
      target.prepare(args.y, args.dtype, cells);
      for (int64_t group = first_filter / shape.filters; group * shape.filters < end_filter; ++group) {
        const int64_t before = group * shape.filters;
        step(group, std::max(first_filter - before, int64_t(0)),
             std::min(end_filter - before, shape.filters));
      }
    }
  }

  void find_x(int64_t first, int64_t count) {
    for (size_t plane = 0; plane < sources.size(); ++plane) {
      shape.space.input_runs(args.x, int64_t(plane), first, count, sources[plane].runs);
      sources[plane].prepare(args.x, args.dtype, count);
    }
  }

  // The last cells of the step before.
  void keep_x() {
    for (int64_t row = 0; row < shape.planes * args.x.channels; ++row) {
      std::memmove(x + row * x_pitch, x + row * x_pitch + cells, size_t(x_before) * sizeof(A));
    }
  }

  // New cells, behind `kept` ones.
  void load_x(int64_t kept) {
    for (int64_t plane = 0; plane < shape.planes; ++plane) {
      load_cells<A>(args.x, sources[size_t(plane)], x_before + cells - kept, 0, args.x.channels,
                    x + plane * args.x.channels * x_pitch + kept, x_pitch);
    }
  }

  // Filters first .. end - 1 of a group.
  void step(int64_t group, int64_t first, int64_t end) {
    if (shape.plan) reduce(group);
    for (int64_t f = first; f < end; f += kStored<A>) {
      const int64_t count = std::min(kStored<A>, end - f);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t k = group * shape.filters + f + j, in_block = j % kFilters;
        if (shape.plan && !in_block) expand(group, f + j, std::min(kFilters, count - j));
        for (const Cells<A>& source : sources) {
          if (fetches) {
            fetch_cells(args.x, source, 0, args.x.channels, k - first_filter, end_filter - first_filter);
          }
        }
        if (shape.plan) across(k, z + in_block * 2 * shape.planes * z_pitch);
        finish(group, k, y + j * pitch);
      }
      store_cells<A>(args.y, target, cells, group * shape.filters + f, count, y, pitch);
    }
  }

  // The new cells of a group's channels in a plane.
  const A* new_x(int64_t group, int64_t plane) const {
    return x + (plane * args.x.channels + group * shape.channels) * x_pitch + x_before;
  }
  A* inner_rows(int64_t plane, int part) const {
    return inner +
           (plane * (shape.most_inner[0] + shape.most_inner[1]) + (part ? shape.most_inner[0] : 0)) * pitch;
  }

  void reduce(int64_t group) const {
    for (int64_t plane = 0; plane < shape.planes; ++plane) {
      const A* from = new_x(group, plane);
      for (int part : {0, 1}) {
        const auto& factors = shape.plan->parts[size_t(group)][size_t(part)];
        if (!factors.rank) continue;
        A* to = inner_rows(plane, part);
        auto store_row = [=, this](int64_t row, int64_t v, Vec<A> sum) {
          store(to + row * pitch + v * L, sum);
        };
        auto multiply = [&](auto load_row) {
          product<A>({factors.reduce.data(), factors.depth, 1}, factors.rank, factors.depth, cells / L,
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

  // Z for filters f .. f + count - 1 of a group.
  void expand(int64_t group, int64_t f, int64_t count) const {
    const int64_t z_rows = shape.planes * z_pitch;
    for (int64_t plane = 0; plane < shape.planes; ++plane) {
      const A* from = new_x(group, plane);
      for (int part : {0, 1}) {
        const auto& factors = shape.plan->parts[size_t(group)][size_t(part)];
        const A* rows = inner_rows(plane, part);
        A* sums = z + part * z_rows + plane * z_pitch + z_before;
        auto store_row = [=](int64_t row, int64_t v, Vec<A> sum) {
          store(sums + row * 2 * z_rows + v * L, sum);
        };
        auto multiply = [&](auto load_row) {
          product<A>({factors.expand.data() + f * factors.inner(), factors.inner(), 1}, count,
                     factors.inner(), cells / L, load_row, store_row);
        };
        if (factors.rank) {
          multiply([=, this](int64_t r, int64_t v) { return load(rows + r * pitch + v * L); });
        } else if (part) {
          multiply(
              [=, this](int64_t c, int64_t v) { return folded(from, x_pitch, shape.channels, 1, c, v); });
        } else {
          multiply(
              [=, this](int64_t c, int64_t v) { return folded(from, x_pitch, shape.channels, 0, c, v); });
        }
      }
    }
  }

  // Puts the `count` kept cells of each row before its new ones, and keeps its last ones.
  void exchange(A* kept, int64_t count, int64_t number, A* rows, int64_t rows_pitch) const {
    for (int64_t row = 0; row < number; ++row, kept += count, rows += rows_pitch) {
      for (int64_t p = 0; p < count; p += L) store(rows + p, load(kept + p));
      // Afterwards, because a step may have fewer cells than are kept, which then lie among these.
      for (int64_t p = 0; p < count; p += L) store(kept + p, load(rows + cells + p));
    }
  }

  // H of filter k: Z, in [2][planes] rows, summed over the taps of a row.
  void across(int64_t k, A* z_rows) {
    const TapAxis& columns = shape.space.columns;
    const int64_t row_planes = int64_t(shape.space.rows.origins.size()), width = int64_t(columns.taps.size());
    exchange(z_kept + k * 2 * shape.planes * z_before, z_before, 2 * shape.planes, z_rows, z_pitch);
    const A *re = z_rows, *im = z_rows + shape.planes * z_pitch;
    A* const h_im = h + row_planes * h_pitch;
    const A* turns = shape.plan->across.data() + 2 * k * width;
    for (int64_t row_plane = 0; row_plane < row_planes; ++row_plane) {
      auto offset = [&](int64_t b) {
        const TapAxis::Tap& tap = columns.taps[size_t(b)];
        return shape.space.plane(row_plane, tap.plane) * z_pitch + z_before - ahead + tap.shift;
      };
      int count = 0;
      for (int64_t b = 0; b < width; ++b) {
        if (b != width / 2) terms[count++] = {turns[2 * b], turns[2 * b + 1], lanes[size_t(b)], offset(b)};
      }
      const int64_t center = offset(width / 2);
      rotated_sum<A>(re, im, &center, terms, count, cells / L, h + row_plane * h_pitch + h_before,
                     h_im + row_plane * h_pitch + h_before);
    }
    exchange(h_kept + k * 2 * row_planes * h_before, h_before, 2 * row_planes, h, h_pitch);
  }

  // y of filter k: H summed over the rows of its taps, times alpha, and the products with its row of S; plus the bias.
  void finish(int64_t group, int64_t k, A* to) const {
    TapEntry<A>* entry = entries;
    if (shape.plan) {
      const TapAxis& rows = shape.space.rows;
      const int64_t height = int64_t(rows.taps.size());
      const bool swaps = shape.plan->swaps[size_t(k)];
      const int64_t h_im = int64_t(rows.origins.size()) * h_pitch;
      for (int64_t a = 0; a < height; ++a) {
        const TapAxis::Tap& tap = rows.taps[size_t(a)];
        const A* factors = shape.plan->down.data() + 2 * (k * height + a);
        const int64_t seen =
            h - x + tap.plane * h_pitch + h_before - lag + tap.shift * shape.space.columns.pitch;
        *entry++ = {shape.alpha * factors[0], kAllLanes, seen + (swaps ? h_im : 0)};
        if (a != height / 2 || shape.plan->turns) {
          *entry++ = {shape.alpha * factors[1], kAllLanes, seen + (swaps ? 0 : h_im)};
        }
      }
    }
    const SparseMatrix& s = args.s;
    const A* values = static_cast<const A*>(s.values);
    for (int32_t t = s.nnz ? s.crow[k] : 0, end = s.nnz ? s.crow[k + 1] : 0; t < end; ++t) {
      const Place& place = places[s.col[t]];
      *entry++ = {values[t], place.lanes, place.offset + group * shape.channels * x_pitch};
    }
    if (entry == entries) *entry++ = {};  // nothing but the bias
    const A bias = args.bias ? static_cast<const A*>(args.bias)[k] : A(0);
    sum_entries(entries, entry - entries, x, cells / L, bias, to);
  }
};

template <class A>
void forward(const Conv2dForwardArgs& args) {
  if (!args.batch) return;
  using Tile = ForwardTile<A>;
  const Shape<A> shape(args.geometry, args.batch, args.x, args.y, args.alpha, args.alpha != nullptr);
  // One chunk for a single thread, a few for each of several.
  const int64_t line = shape.space.cells, most = Tile::most_cells(args, shape), workers = max_workers();
  const int64_t behind = shape.space.row_reach() + Tile::columns_reach(shape);
  const int64_t least = std::max(behind, kFewestVectors * kLanes<A>);
  const int64_t fewest = std::clamp(line / least, int64_t(1), workers);
  const int64_t wanted = workers == 1 ? 1 : std::clamp(line / most, fewest, kChunksPerWorker * workers);
  const int64_t chunk = round_up(ceil_div(line, wanted), Tile::kStepUnit);
  const int64_t step = std::min(most, round_up(chunk + behind, Tile::kStepUnit));
  // Threads that a short line leaves idle share its filters, though each then reduces all channels.
  const int64_t chunks = ceil_div(line, chunk), stored = kStored<A>;
  const int64_t sharing = std::clamp(workers / chunks, int64_t(1), ceil_div(shape.m, stored));
  const int64_t filters = round_up(ceil_div(shape.m, sharing), stored);
  const int64_t parts = ceil_div(shape.m, filters);
  parallel_chunks(chunks * parts, [&] {
    return [=, m = shape.m, tile = Tile(args, shape, step)](int64_t number) mutable {
      const int64_t begin = number / parts * chunk, filter = number % parts * filters;
      tile.run(begin, std::min(begin + chunk, line), filter, std::min(filter + filters, m));
    };
  });
}

// --------------------------------------------------------------------------------------------------- backward

// A nonzero of S with all that backward needs to know of it.
struct PlacedEntry {
  int32_t row, number, tap;  // number: in CSR order
};

// The nonzeros sorted by (group of the row, plane of the tap, channel).
template <class A>
struct PlacedEntries {
  std::vector<PlacedEntry> entries;
  std::vector<int64_t> first;  // [groups][planes][channels], and the end

  PlacedEntries(const Shape<A>& shape, const SparseMatrix& s) {
    first.assign(size_t(shape.groups * shape.planes * shape.channels + 1), 0);
    entries.resize(size_t(s.nnz));
    auto each = [&](const auto& body) {
      for (int64_t k = 0; k < s.m; ++k) {
        for (int32_t t = s.crow[k]; t < s.crow[k + 1]; ++t) {
          int64_t tap, channel;
          shape.place(s.col[t], tap, channel);
          const int64_t plane = (k / shape.filters) * shape.planes + shape.tap_plane(tap);
          body(size_t(plane * shape.channels + channel), PlacedEntry{int32_t(k), t, int32_t(tap)});
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
template <class A>
struct BackwardTile {
  static constexpr int64_t L = kLanes<A>;
  // Filters whose part is added to `inner` at a time, folded channels that are expanded at a time.
  static constexpr int64_t kSummed = 4 * kFilters;
  const Conv2dBackwardArgs& args;
  const Shape<A>& shape;
  const PlacedEntries<A>& placed;
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
  std::vector<SeenLanes> lanes;             // of each column of the kernel
  std::vector<Place> places;                // of each tap, in a row of dy
  std::vector<Cells<A>> x_cells, dx_cells;  // of each plane
  Cells<A> dy_cells, next_dy;               // next_dy: of the tile that this thread will probably take next
  bool fetches_x, fetches_dy;               // of this tile and of the next, while other work goes on

  static int64_t values(const Shape<A>& s) {
    return s.filters + s.planes * (s.most_inner[0] + s.most_inner[1] + 2 * kSummed) + 4 * kStored<A>;
  }

  BackwardTile(const Conv2dBackwardArgs& arguments, const Shape<A>& s, const PlacedEntries<A>& p,
               bool dx_wanted)
      : args(arguments),
        shape(s),
        placed(p),
        wants_dx(dx_wanted),
        x_cells(size_t(s.planes)),
        dx_cells(size_t(s.planes)) {
    cells = s.tile_cells(values(s), s.space.reach());
    fetches_x =
        (args.sums.dvalues || args.sums.dalpha) && has_bytes(args.x, args.batch, args.dtype, kFetchedBytes);
    fetches_dy = has_bytes(args.dy, args.batch, args.dtype, kFetchedBytes);
    across = round_up(s.space.columns.most_shift, L);
    before = round_up(across + s.space.row_reach(), L);
    dy_pitch = row_pitch<A>(before + cells);
    pitch = row_pitch<A>(round_up(across + cells, kTapVectors * L));
    Pieces counted(nullptr);
    take(counted);
    Pieces pieces(thread_workspace(size_t(counted.bytes())));
    take(pieces);
    const TapAxis& columns = s.space.columns;
    for (const TapAxis::Tap& tap : columns.taps) {
      // In column 0 is the first cell of the tap's plane, which it sees from output tap.begin.
      lanes.push_back(s.seen_lanes(columns.first - tap.begin - tap.shift, [&](int64_t column) {
        const int64_t o = tap.begin + column;
        return 0 <= o && o < args.dy.width;
      }));
    }
    for (int64_t tap = 0; tap < int64_t(s.space.rows.taps.size() * columns.taps.size()); ++tap) {
      places.push_back({before - s.tap_shift(tap), lanes[size_t(tap) % lanes.size()]});
    }
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
    entries = pieces.take<TapEntry<A>>(longest + 1);
    terms = pieces.take<TapTerm<A>>(std::max(args.geometry.kernel_height, args.geometry.kernel_width));
  }

  void run(int64_t tile) {
    const int64_t begin = start(tile);
    dalpha = 0;
    if (args.sums.dvalues) std::memset(dvalues, 0, size_t(args.s.nnz) * sizeof(A));
    find_dy(tile, dy_cells);
    if (fetches_dy) find_dy(tile + max_workers(), next_dy);
    for (int64_t plane = 0; plane < shape.planes; ++plane) {
      for (auto [images, of_planes] : {std::pair{&args.x, &x_cells}, std::pair{&args.dx, &dx_cells}}) {
        Cells<A>& of_plane = (*of_planes)[size_t(plane)];
        shape.space.input_runs(*images, plane, begin, cells, of_plane.runs);
        of_plane.prepare(*images, args.dtype, cells);
        of_plane.streaming = has_bytes(*images, args.batch, args.dtype, kLargeBytes);
      }
    }
    for (int64_t group = 0; group < shape.groups; ++group) {
      load_cells<A>(args.dy, dy_cells, before + cells, group * shape.filters, shape.filters, dy, dy_pitch);
      if (args.sums.dbias) {
        for (int64_t f = 0; f < shape.filters; ++f) {
          dbias[group * shape.filters + f] =
              cell_sum<A>(dy + f * dy_pitch + before - shape.space.columns.first, cells / L);
        }
      }
      if (shape.plan) gather(group);
      for (int64_t plane = 0; plane < shape.planes; ++plane) spread(group, plane);
    }
  }

  // So that packed rows of dx begin with a vector.
  int64_t start(int64_t tile) const { return tile * cells + shape.space.columns.first; }

  void find_dy(int64_t tile, Cells<A>& found) const {
    shape.space.output_runs(args.dy, start(tile) - before, 0, start(tile + 1), found.runs);
    found.prepare(args.dy, args.dtype, before + cells);
  }

  A* inner_rows(int64_t plane, int part) const {
    return inner +
           (plane * (shape.most_inner[0] + shape.most_inner[1]) + (part ? shape.most_inner[0] : 0)) * pitch;
  }

  // The transpose of ForwardTile::transform: from dy to `inner`.
  void gather(int64_t group) {
    for (int64_t f = 0; f < shape.filters; f += kSummed) {
      const int64_t count = std::min(kSummed, shape.filters - f);
      for (int64_t j = 0; j < count; ++j) {
        for (int64_t plane = 0; plane < shape.planes && fetches_x; ++plane) {
          fetch_cells(args.x, x_cells[size_t(plane)], group * shape.channels, shape.channels, f + j,
                      shape.filters);
        }
        combine(group, f + j, z + j * 2 * shape.planes * pitch);
      }
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
          terms[count++] = {down[2 * a], down[2 * a + 1], kAllLanes, -tap.shift * columns.pitch};
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
            terms[count++] = {turns[2 * b], -turns[2 * b + 1], lanes[size_t(b)], across - tap.shift};
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
      load_cells<A>(args.x, x_cells[size_t(plane)], cells, image_channel, count, x, pitch);
    }
    const int64_t all_channels = shape.planes * args.x.channels;
    for (int64_t i = 0; i < count; ++i) {
      if (fetches_dy) {
        fetch_cells(args.dy, next_dy, 0, shape.m, plane * args.x.channels + image_channel + i, all_channels);
      }
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
    if (wants_dx) {
      store_cells<A>(args.dx, dx_cells[size_t(plane)], cells, image_channel, count, dx, pitch);
    }
  }

  // S^T dy and the SDDMM, for one channel.
  void add_sparse(int64_t list, int64_t first_filter, const A* from, A* to) {
    const int64_t begin = placed.first[size_t(list)], end = placed.first[size_t(list) + 1];
    if (begin == end) return;
    const A* values = static_cast<const A*>(args.s.values);
    for (int64_t t = begin; t < end; ++t) {
      const PlacedEntry& entry = placed.entries[size_t(t)];
      const Place& place = places[size_t(entry.tap)];
      entries[t - begin] = {values ? values[entry.number] : A(0), place.lanes,
                            (entry.row - first_filter) * dy_pitch + place.offset};
    }
    if (wants_dx) {
      entries[end - begin] = {A(1), kAllLanes, to - dy};
      sum_entries(entries, end - begin + 1, dy, cells / L, A(0), to);
    }
    if (!args.sums.dvalues) return;
    for (int64_t t = begin; t < end; ++t) {
      const TapEntry<A>& entry = entries[t - begin];
      dvalues[t] += cell_product<A>(dy + entry.offset, from, entry.lanes, cells / L);
    }
  }
};

template <class A>
void backward(const Conv2dBackwardArgs& args) {
  if (!args.batch) return;
  const bool wants_dx = args.dx.data;
  A* const dvalues = static_cast<A*>(args.sums.dvalues);
  A* const dbias = static_cast<A*>(args.sums.dbias);
  const Shape<A> shape(args.geometry, args.batch, args.x, args.dy, args.alpha,
                       args.alpha && (wants_dx || args.sums.dalpha));
  const PlacedEntries<A> placed(shape, args.s);
  const int64_t cells = shape.tile_cells(BackwardTile<A>::values(shape), shape.space.reach());
  OrderedSections sections(1);
  std::vector<A> sums(dvalues ? size_t(args.s.nnz) : 0);
  parallel_chunks_in_order(ceil_div(shape.space.input_cells(), cells), [&] {
    return [&, tile = BackwardTile<A>(args, shape, placed, wants_dx)](int64_t number) mutable {
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
  dispatch_accumulator(args.dtype, [&](auto zero) { forward<decltype(zero)>(args); });
}

void conv2d_taps_backward_cpu(const Conv2dBackwardArgs& args) {
  dispatch_accumulator(args.dtype, [&](auto zero) { backward<decltype(zero)>(args); });
}

}  // namespace DCTPS_ISA
}  // namespace dctps
