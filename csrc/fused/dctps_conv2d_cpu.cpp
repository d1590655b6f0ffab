// The fused convolution on CPU: a tile of kLanes output pixels at a time, its patches gathered into fast
// memory, transformed, multiplied by the sparse part and stored; no im2col matrix.
#include "fused/dctps_conv2d.h"

#include "common/integers.h"
#include "common/parallel.h"
#include "common/workspace.h"
#include "dct/dct_tile.h"
#include "patch/patch_tile.h"
#include "sparse/sparse_tile.h"

namespace dctps {
namespace DCTPS_ISA {
namespace {

// Sizes that both directions share.
template <class E>
struct Shape {
  using A = Accumulator<E>;
  int64_t channels_per_group, filters_per_group, n, m, q, pixels_per_image;
  std::shared_ptr<const Plan<A>> plan;  // null: no DCT part
  A alpha;

  Shape(const ConvGeometry& g, const Images& x, const Images& y, const void* alpha_pointer, bool transforms)
      : channels_per_group(x.channels / g.groups),
        filters_per_group(y.channels / g.groups),
        n(g.kernel_height * g.kernel_width * channels_per_group),
        m(y.channels),
        q(m > n ? m : n),
        pixels_per_image(y.height * y.width),
        plan(transforms ? get_plan<A>(q) : nullptr),
        alpha(alpha_pointer ? *static_cast<const A*>(alpha_pointer) : A(0)) {}

  int64_t work_size() const { return plan ? plan->work_size : 0; }
};

template <class E>
void forward(const Conv2dForwardArgs& args) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  constexpr int L = kLanes<A>;
  if (!args.batch) return;
  const Shape<E> shape(args.geometry, args.x, args.y, args.alpha, args.alpha != nullptr);
  const A* bias = static_cast<const A*>(args.bias);
  const int64_t pixels = args.batch * shape.pixels_per_image;

  parallel_chunks(ceil_div(pixels, L), [&] {
    V* patches = static_cast<V*>(thread_workspace(size_t(shape.q + shape.work_size()) * sizeof(V)));
    V* work = patches + shape.q;
    for (int64_t i = shape.n; i < shape.q; ++i) patches[i] = V{};
    return [&args, &shape, patches, work, bias, pixels](int64_t chunk) {
      const SparseMatrix& s = args.s;
      const PixelTile<A> tile(chunk * L, pixels, args.y.height, args.y.width);
      for (int64_t group = 0; group < args.geometry.groups; ++group) {
        tile.template load_patches<E>(args.geometry, args.x, group * shape.channels_per_group,
                                      shape.channels_per_group, patches);
        const int64_t first = group * shape.filters_per_group;
        const Lanes<E> y = tile.template outputs<E>(args.y, first);
        auto sparse_and_bias = [&](int64_t k, V value) {
          if (s.nnz) value = sparse_row<A>(value, s, k, patches);
          return bias ? value + bias[k] : value;
        };
        if (shape.plan) {
          const TileTransform<A> transform(*shape.plan);
          transform.forward(patches, work);
          store_tile_rolled<E>(y, shape.filters_per_group, [&](int64_t k) {
            return sparse_and_bias(first + k, transform.finish(work, first + k) * shape.alpha);
          });
        } else {
          store_tile_rolled<E>(y, shape.filters_per_group,
                               [&](int64_t k) { return sparse_and_bias(first + k, V{}); });
        }
      }
    };
  });
}

// Images are dealt out in units of whole images with at least this many output pixels: a unit has the sums of
// its dx to itself. The unit depends on the shape alone, never on the number of threads.
constexpr int64_t kPixelsPerUnit = 64;

// Scratch memory of a thread for the backward pass.
template <class A>
struct Scratch {
  using V = Vec<A>;
  V *dy, *patches, *work;
  A *rows, *dx, *dvalues,
      *dbias;  // rows: the patches' gradients, lane by lane; dx: channels-last sums of a unit

  template <class E>
  Scratch(const Shape<E>& shape, int64_t nnz, int64_t dx_size) {
    const int64_t vectors = 2 * shape.q + shape.work_size();
    const int64_t row_values = kLanes<A> * shape.n;
    dy = static_cast<V*>(thread_workspace(size_t(vectors) * sizeof(V) +
                                          size_t(row_values + dx_size + nnz + shape.m) * sizeof(A)));
    patches = dy + shape.q;
    work = patches + shape.q;
    rows = reinterpret_cast<A*>(dy + vectors);
    dx = rows + row_values;
    dvalues = dx + dx_size;
    dbias = dvalues + nnz;
  }
};

template <class A>
void add(const A* from, int64_t count, A* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// Writes the channels-last sums of a unit to its images in dx.
template <class E>
void store_images(const Images& dx, int64_t first_image, int64_t images, const Accumulator<E>* sums) {
  for (int64_t image = first_image; image < first_image + images; ++image) {
    for (int64_t row = 0; row < dx.height; ++row) {
      for (int64_t column = 0; column < dx.width; ++column, sums += dx.channels) {
        E* to = pixel<E>(dx, image, row, column, 0);
        for (int64_t c = 0; c < dx.channels; ++c) to[c * dx.channel_stride] = from_accumulator<E>(sums[c]);
      }
    }
  }
}

template <class E>
void backward(const Conv2dBackwardArgs& args) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  constexpr int L = kLanes<A>;
  if (!args.batch) return;
  const bool wants_dx = args.dx.data;
  A* const dvalues = static_cast<A*>(args.sums.dvalues);
  double* const dalpha = args.sums.dalpha;
  A* const dbias = static_cast<A*>(args.sums.dbias);
  const Shape<E> shape(args.geometry, args.x, args.dy, args.alpha, args.alpha && (wants_dx || dalpha));
  const SparseMatrix& s = args.s;
  A* const values = static_cast<A*>(args.sums.scratch);  // in column order
  values_by_column(s, values);

  const int64_t images_per_unit = (kPixelsPerUnit + shape.pixels_per_image - 1) / shape.pixels_per_image;
  const int64_t dx_size = wants_dx ? images_per_unit * args.x.height * args.x.width * args.x.channels : 0;
  OrderedSections sections(1);

  parallel_chunks_in_order(ceil_div(args.batch, images_per_unit), [&] {
    const Scratch<A> scratch(shape, dvalues ? s.nnz : 0, dx_size);
    return [&, scratch](int64_t unit) {
      const int64_t first_image = unit * images_per_unit;
      const int64_t images =
          args.batch - first_image < images_per_unit ? args.batch - first_image : images_per_unit;
      for (int64_t i = 0; i < dx_size; ++i) scratch.dx[i] = A(0);
      if (dvalues) std::memset(scratch.dvalues, 0, size_t(s.nnz) * sizeof(A));
      if (dbias) std::memset(scratch.dbias, 0, size_t(shape.m) * sizeof(A));
      double dalpha_part = 0;

      const int64_t end = (first_image + images) * shape.pixels_per_image;
      for (int64_t p = first_image * shape.pixels_per_image; p < end; p += L) {
        const PixelTile<A> tile(p, end, args.dy.height, args.dy.width);
        for (int64_t group = 0; group < args.geometry.groups; ++group) {
          const int64_t channel = group * shape.channels_per_group;
          const int64_t first = group * shape.filters_per_group, last = first + shape.filters_per_group;
          // Other groups' filters see none of this patch.
          for (int64_t k = 0; k < shape.q; ++k) {
            if (k < first || k >= last) scratch.dy[k] = V{};
          }
          load_tile<E>(tile.template outputs<const E>(args.dy, first), shape.filters_per_group,
                       scratch.dy + first);
          if (dvalues || dalpha) {
            tile.template load_patches<E>(args.geometry, args.x, channel, shape.channels_per_group,
                                          scratch.patches);
          }

          if (shape.plan) TileTransform<A>(*shape.plan).adjoint(scratch.dy, scratch.work);

          if (dvalues) {
            EntrySums<A> entry_sums(scratch.dvalues);
            for (int64_t i = 0; i < shape.n; ++i) {
              entry_sums.add(s.ccol[i], s.ccol[i + 1], [&](V* to, int64_t t, int count) {
                for (int e = 0; e < count; ++e) {
                  // Another group's filters do not see this patch, whatever is in it.
                  const int32_t r = s.row[t + e];
                  to[e] = r >= first && r < last ? scratch.dy[r] * scratch.patches[i] : V{};
                }
              });
            }
            entry_sums.finish();
          }
          V dalpha_lanes{};
          auto gradient_of = [&](int64_t i) {
            V gradient{};
            if (shape.plan) {
              gradient = TileTransform<A>(*shape.plan).adjoint_finish(scratch.work, i);
              if (dalpha) dalpha_lanes += gradient * scratch.patches[i];
              gradient *= shape.alpha;
            }
            return s.nnz ? sparse_column<A>(gradient, s, values, i, scratch.dy) : gradient;
          };
          if (wants_dx) {
            Lanes<A> rows;
            rows.stride = 1;
            for (int l = 0; l < L; ++l) rows.lane[l] = scratch.rows + l * shape.n;
            store_tile_rolled<A>(rows, shape.n, gradient_of);
            tile.add_patches(args.geometry, args.x, first_image, channel, shape.channels_per_group,
                             scratch.rows, scratch.dx);
          } else if (dalpha) {
            for (int64_t i = 0; i < shape.n; ++i) gradient_of(i);
          }
          if (dalpha) dalpha_part += lane_sum<A>(__builtin_convertvector(dalpha_lanes, DoubleVec<A>));
          if (dbias) add_lane_sums<A>(scratch.dy + first, shape.filters_per_group, scratch.dbias + first);
        }
      }
      if (wants_dx) store_images<E>(args.dx, first_image, images, scratch.dx);
      sections.in_turn(0, unit, [&] {
        if (dvalues) add(scratch.dvalues, s.nnz, dvalues);
        if (dbias) add(scratch.dbias, shape.m, dbias);
        if (dalpha) *dalpha += dalpha_part;
      });
    };
  });
  if (dvalues) to_csr_order(s, values, dvalues);
}

}  // namespace

void conv2d_forward_cpu(const Conv2dForwardArgs& args) {
  dispatch(args.dtype, [&](auto element) { forward<decltype(element)>(args); });
}

void conv2d_backward_cpu(const Conv2dBackwardArgs& args) {
  dispatch(args.dtype, [&](auto element) { backward<decltype(element)>(args); });
}

}  // namespace DCTPS_ISA
}  // namespace dctps
