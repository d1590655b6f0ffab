// Patches of images as the rows of a tile: kLanes output pixels side by side, gathered and scattered without
// an im2col matrix.
#pragma once

#include "common/tile_io.h"
#include "fused/dctps_conv2d.h"

namespace dctps {
namespace DCTPS_ISA {

template <class E>
DCTPS_INLINE E* pixel(const Images& images, int64_t image, int64_t row, int64_t column, int64_t channel) {
  return static_cast<E*>(images.data) + image * images.image_stride + row * images.row_stride +
         column * images.column_stride + channel * images.channel_stride;
}

// The output pixels first .. first + kLanes - 1 of a batch, counted image by image and row by row; those from
// `end` on are absent.
template <class A>
struct PixelTile {
  int64_t image[kLanes<A>], row[kLanes<A>], column[kLanes<A>];  // image = -1: absent

  PixelTile(int64_t first, int64_t end, int64_t height, int64_t width) {
    for (int l = 0; l < kLanes<A>; ++l) {
      const int64_t p = first + l;
      image[l] = p < end ? p / (height * width) : -1;
      row[l] = p / width % height;
      column[l] = p % width;
    }
  }

  // The lanes of these pixels in images of the output's size, from `channel` on.
  template <class E>
  Lanes<E> outputs(const Images& images, int64_t channel) const {
    Lanes<E> lanes;
    lanes.stride = images.channel_stride;
    for (int l = 0; l < kLanes<A>; ++l) {
      lanes.lane[l] = image[l] < 0 ? nullptr : pixel<E>(images, image[l], row[l], column[l], channel);
    }
    return lanes;
  }

  // The input position that kernel tap (a, b) of pixel l sees; false in the padding.
  DCTPS_INLINE bool input(const ConvGeometry& g, const Images& x, int l, int64_t a, int64_t b, int64_t& y_in,
                          int64_t& x_in) const {
    y_in = row[l] * g.stride_y - g.padding_y + a * g.dilation_y;
    x_in = column[l] * g.stride_x - g.padding_x + b * g.dilation_x;
    return image[l] >= 0 && y_in >= 0 && y_in < x.height && x_in >= 0 && x_in < x.width;
  }

  // patches [kernel_height * kernel_width * count] = the patches of these pixels, channels first_channel .. +
  // count - 1.
  template <class E>
  void load_patches(const ConvGeometry& g, const Images& x, int64_t first_channel, int64_t count,
                    Vec<A>* patches) const {
    Lanes<const E> lanes;
    lanes.stride = x.channel_stride;
    for (int64_t a = 0; a < g.kernel_height; ++a) {
      for (int64_t b = 0; b < g.kernel_width; ++b, patches += count) {
        for (int l = 0; l < kLanes<A>; ++l) {
          int64_t y_in, x_in;
          lanes.lane[l] = input(g, x, l, a, b, y_in, x_in)
                              ? pixel<const E>(x, image[l], y_in, x_in, first_channel)
                              : nullptr;
        }
        load_tile<E>(lanes, count, patches);
      }
    }
  }

  // Adds the patches, one row of n = kernel_height * kernel_width * count values per lane, to where they came
  // from. `sums` is channels-last, [images, height, width, channels], from `first_image` on. Pixel by pixel,
  // so that the order in which a place receives its parts does not depend on how pixels are grouped into
  // tiles.
  void add_patches(const ConvGeometry& g, const Images& x, int64_t first_image, int64_t first_channel,
                   int64_t count, const A* rows, A* sums) const {
    for (int l = 0; l < kLanes<A>; ++l) {
      for (int64_t a = 0; a < g.kernel_height; ++a) {
        for (int64_t b = 0; b < g.kernel_width; ++b, rows += count) {
          int64_t y_in, x_in;
          if (!input(g, x, l, a, b, y_in, x_in)) continue;
          A* to = sums + (((image[l] - first_image) * x.height + y_in) * x.width + x_in) * x.channels +
                  first_channel;
          for (int64_t c = 0; c < count; ++c) to[c] += rows[c];
        }
      }
    }
  }
};

}  // namespace DCTPS_ISA
}  // namespace dctps
