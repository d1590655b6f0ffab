// Images as one line of cells, in which every tap of a patch is a fixed distance: rows one behind the other, padding
// shared by neighbours, images one behind the other. For stride s, the padded image is dealt into s x s planes of cells,
// so that in each plane patches are neighbours again.
#pragma once

#include <algorithm>
#include <vector>

#include "common/integers.h"
#include "fused/dctps_conv2d.h"

namespace dctps {

// In a plane that begins at input position `origin`, cells first_cell .. end_cell - 1 hold input, the others padding.
inline int64_t first_cell(int64_t origin, int64_t stride) {
  return origin >= 0 ? 0 : ceil_div(-origin, stride);
}
inline int64_t end_cell(int64_t origin, int64_t stride, int64_t size) {
  return std::max(first_cell(origin, stride), ceil_div(size - origin, stride));
}

// Rows or columns of the line.
struct TapAxis {
  struct Tap {
    int64_t plane, shift;  // output o sees cell o + shift of this plane,
    int64_t begin, end;    // which is input for begin <= o < end
  };
  std::vector<Tap> taps;
  std::vector<int64_t> origins;  // of each plane that some tap sees
  int64_t stride, most_shift, pitch;
  bool is_packed;  // no padding between lines: who reads beyond a tap's [begin, end) has to leave that out
  // Of a packed line: its first cell that is input in some plane, and its cells behind a pitch from there; else 0.
  int64_t first = 0, beyond = 0;

  // Packed if that makes a line shorter, `whole` cells are whole lines and the middle tap sees each cell of its plane from
  // an output; 0: never.
  TapAxis(int64_t kernel, int64_t step, int64_t padding, int64_t dilation, int64_t in, int64_t out,
          int64_t whole)
      : stride(step), most_shift((kernel - 1) * dilation / step) {
    for (int64_t t = 0; t < kernel; ++t) {
      const int64_t origin = t * dilation % step - padding;
      const auto known = std::find(origins.begin(), origins.end(), origin);
      const int64_t shift = t * dilation / step;
      taps.push_back({known - origins.begin(), shift, first_cell(origin, step) - shift,
                      end_cell(origin, step, in) - shift});
      if (known == origins.end()) origins.push_back(origin);
    }
    int64_t begin = first_cell(origins[0], step), end = out, longest = out;
    for (int64_t origin : origins) {
      begin = std::min(begin, first_cell(origin, step));
      end = std::max(end, end_cell(origin, step, in));
      longest = std::max(longest, end_cell(origin, step, in) - first_cell(origin, step));
    }
    pitch = std::max(end, out + most_shift - begin);  // the zeros behind a line may be those before the next
    const Tap& middle = taps[size_t(kernel / 2)];
    is_packed = whole && whole % longest == 0 && longest < pitch && middle.begin == 0 && middle.end == out;
    if (is_packed) {
      pitch = longest;
      first = begin;
      beyond = std::max(end - begin - pitch, int64_t(0));
    }
  }
};

// Consecutive cells of the line and where they come from.
struct Run {
  int64_t cell, count;     // from the beginning of the part of the line that is asked for
  int64_t offset, stride;  // elements: of the first one, and from one to the next

  bool continues(const Run& next) const {
    return next.cell == cell + count && next.stride == stride && next.offset == offset + count * stride;
  }
};

struct TapSpace {
  TapAxis rows, columns;
  int64_t cells;  // of the whole batch

  // whole_rows: see TapAxis, for the columns.
  TapSpace(const ConvGeometry& g, int64_t batch, const Images& x, const Images& y, int64_t whole_rows)
      : rows(g.kernel_height, g.stride_y, g.padding_y, g.dilation_y, x.height, y.height, 0),
        columns(g.kernel_width, g.stride_x, g.padding_x, g.dilation_x, x.width, y.width, whole_rows),
        cells(batch * rows.pitch * columns.pitch) {}

  // Cells that hold all input, from columns.first on.
  int64_t input_cells() const { return cells + columns.beyond; }
  int64_t planes() const { return int64_t(rows.origins.size() * columns.origins.size()); }
  int64_t plane(int64_t row_plane, int64_t column_plane) const {
    return row_plane * int64_t(columns.origins.size()) + column_plane;
  }
  // Distance of the farthest tap, in rows alone and in all.
  int64_t row_reach() const { return rows.most_shift * columns.pitch; }
  int64_t reach() const { return row_reach() + columns.most_shift; }

  // The runs of x in cells first .. first + count - 1 of a plane.
  void input_runs(const Images& x, int64_t plane, int64_t first, int64_t count,
                  std::vector<Run>& runs) const {
    const int64_t width = int64_t(columns.origins.size());
    find_runs(x, rows.origins[size_t(plane / width)], columns.origins[size_t(plane % width)], rows.stride,
              columns.stride, first, 0, first + count, runs);
  }

  // The same for images of the output's size, of cells begin .. end - 1 only.
  void output_runs(const Images& y, int64_t first, int64_t begin, int64_t end, std::vector<Run>& runs) const {
    find_runs(y, 0, 0, 1, 1, first, begin, end, runs);
  }

 private:
  void find_runs(const Images& images, int64_t row_origin, int64_t column_origin, int64_t row_stride,
                 int64_t column_stride, int64_t first, int64_t least, int64_t stop,
                 std::vector<Run>& runs) const {
    runs.clear();
    const int64_t row_begin = first_cell(row_origin, row_stride);
    const int64_t row_end = end_cell(row_origin, row_stride, images.height);
    const int64_t begin = first_cell(column_origin, column_stride);
    const int64_t end = end_cell(column_origin, column_stride, images.width);
    const int64_t start = std::max(first, least), lines = cells / columns.pitch;
    int64_t line = start < end ? 0 : (start - end) / columns.pitch + 1;  // the first that does not end before
    for (; line < lines && line * columns.pitch < stop; ++line) {
      const int64_t image = line / rows.pitch, row = line % rows.pitch;
      if (row < row_begin || row >= row_end) continue;
      const int64_t from = std::max(start, line * columns.pitch + begin);
      const int64_t to = std::min(stop, line * columns.pitch + end);
      if (from >= to) continue;
      const int64_t column = column_origin + column_stride * (from - line * columns.pitch);
      const Run run{from - first, to - from,
                    image * images.image_stride + (row_origin + row * row_stride) * images.row_stride +
                        column * images.column_stride,
                    column_stride * images.column_stride};
      if (!runs.empty() && runs.back().continues(run)) {
        runs.back().count += run.count;
      } else {
        runs.push_back(run);
      }
    }
  }
};

}  // namespace dctps
