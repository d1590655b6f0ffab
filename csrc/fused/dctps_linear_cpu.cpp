// The fused linear layer on CPU: a tile of kLanes rows at a time, x and dy read once, y and dx written once.
#include "fused/dctps_linear.h"

#include "common/parallel.h"
#include "common/tile_io.h"
#include "common/workspace.h"
#include "dct/dct_tile.h"
#include "sparse/sparse_tile.h"

namespace dctps {
namespace DCTPS_ISA {
namespace {

// The rows first .. first + kLanes - 1 of a batch of `rows`, those past its end null.
template <class E>
Lanes<E> lanes_of(const Rows& matrix, int64_t first, int64_t rows) {
  Lanes<E> result;
  result.stride = matrix.stride;
  for (int l = 0; l < kLanes<Accumulator<E>>; ++l) {
    E* data = static_cast<E*>(matrix.data);
    result.lane[l] = first + l < rows && data ? data + (first + l) * matrix.row_stride : nullptr;
  }
  return result;
}

template <class E>
void forward(const LinearForwardArgs& args) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  constexpr int L = kLanes<A>;
  const int64_t q = args.m > args.n ? args.m : args.n;
  const auto plan = args.alpha ? get_plan<A>(q) : nullptr;
  const A* bias = static_cast<const A*>(args.bias);
  const A alpha = args.alpha ? *static_cast<const A*>(args.alpha) : A(0);

  parallel_chunks((args.rows + L - 1) / L, [&] {
    const int64_t work_size = plan ? plan->work_size : 0;
    V* x = static_cast<V*>(thread_workspace(size_t(q + work_size) * sizeof(V)));
    V* work = x + q;
    for (int64_t i = args.n; i < q; ++i) x[i] = V{};
    return [&args, &plan, x, work, bias, alpha](int64_t tile) {
      load_tile<E>(lanes_of<const E>(args.x, tile * L, args.rows), args.n, x);
      const Lanes<E> y = lanes_of<E>(args.y, tile * L, args.rows);
      const SparseMatrix& s = args.s;
      if (plan) {
        const TileTransform<A> transform(*plan);
        transform.forward(x, work);
        store_tile<E>(y, args.m, [&](int64_t k) {
          V value = transform.finish(work, k) * alpha;
          if (s.nnz) value += sparse_row<A>(s, k, x);
          return bias ? value + bias[k] : value;
        });
      } else {
        store_tile<E>(y, args.m, [&](int64_t k) {
          const V value = s.nnz ? sparse_row<A>(s, k, x) : V{};
          return bias ? value + bias[k] : value;
        });
      }
    };
  });
}

// Entries a section of the shared sums holds: enough that taking turns costs little beside the work.
constexpr int64_t kEntriesPerSection = 2048;
constexpr int64_t kMostSections = 16;

template <class E>
void backward(const LinearBackwardArgs& args) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  constexpr int L = kLanes<A>;
  const int64_t q = args.m > args.n ? args.m : args.n;
  const bool wants_dx = args.dx.data, wants_x = args.dvalues || args.dalpha;
  const bool transforms = args.alpha && (wants_dx || args.dalpha);
  const auto plan = transforms ? get_plan<A>(q) : nullptr;
  const A alpha = args.alpha ? *static_cast<const A*>(args.alpha) : A(0);
  A* const dvalues = static_cast<A*>(args.dvalues);
  A* const dalpha = static_cast<A*>(args.dalpha);
  A* const dbias = static_cast<A*>(args.dbias);
  const SparseMatrix& s = args.s;

  const int64_t wanted = (s.nnz + kEntriesPerSection - 1) / kEntriesPerSection;
  const int value_sections = !dvalues ? 0 : int(wanted < kMostSections ? wanted : kMostSections);
  OrderedSections sections(value_sections + 1);  // the last one: dbias and dalpha

  parallel_chunks((args.rows + L - 1) / L, [&] {
    const int64_t work_size = plan ? plan->work_size : 0;
    V* dy = static_cast<V*>(thread_workspace(size_t(2 * q + work_size) * sizeof(V)));
    V* x = dy + q;
    V* work = x + q;
    for (int64_t i = args.m; i < q; ++i) dy[i] = V{};
    return [&, dy, x, work](int64_t tile) {
      load_tile<E>(lanes_of<const E>(args.dy, tile * L, args.rows), args.m, dy);
      if (wants_x) load_tile<E>(lanes_of<const E>(args.x, tile * L, args.rows), args.n, x);

      V dalpha_lanes{};
      auto sparse_part = [&](int64_t i) { return s.nnz ? sparse_column<A>(s, i, dy) : V{}; };
      const Lanes<E> dx = lanes_of<E>(args.dx, tile * L, args.rows);
      if (plan) {
        const TileTransform<A> transform(*plan);
        transform.adjoint(dy, work);
        if (wants_dx) {
          store_tile<E>(dx, args.n, [&](int64_t i) {
            const V gradient = transform.adjoint_finish(work, i);
            if (dalpha) dalpha_lanes += gradient * x[i];
            return gradient * alpha + sparse_part(i);
          });
        } else {
          for (int64_t i = 0; i < args.n; ++i) dalpha_lanes += transform.adjoint_finish(work, i) * x[i];
        }
      } else if (wants_dx) {
        store_tile<E>(dx, args.n, sparse_part);
      }

      for (int part = 0; part < value_sections; ++part) {
        // Boundaries at multiples of L, so that a section never splits one vector of sums.
        const int64_t blocks = (s.nnz + L - 1) / L;
        const int64_t begin = part * blocks / value_sections * L,
                      end = (part + 1) * blocks / value_sections * L;
        sections.in_turn(part, tile, [&] {
          add_sampled_products<A>(s, begin, end < s.nnz ? end : s.nnz, dy, x, dvalues);
        });
      }
      if (dbias || dalpha) {
        sections.in_turn(value_sections, tile, [&] {
          if (dbias) add_lane_sums<A>(dy, args.m, dbias);
          if (dalpha) add_lane_sums<A>(&dalpha_lanes, 1, dalpha);
        });
      }
    };
  });
}

}  // namespace

void linear_forward_cpu(const LinearForwardArgs& args) {
  dispatch(args.dtype, [&](auto element) { forward<decltype(element)>(args); });
}

void linear_backward_cpu(const LinearBackwardArgs& args) {
  dispatch(args.dtype, [&](auto element) { backward<decltype(element)>(args); });
}

}  // namespace DCTPS_ISA
}  // namespace dctps
