// Where the samples of a convolution-like operator lie, and by how much each counts.
#pragma once

#include "sampling.h"

namespace dcn {
namespace DCN_ISA {

template <typename A>
class SampleGrid {
   public:
    // On a map of h × w pixels.
    SampleGrid(const Grid& grid, const Deltas& deltas, int64_t h, int64_t w)
        : groups(deltas.y.size[1]),
          points(deltas.y.size[2]),
          positions(deltas.y.size[0] * deltas.y.size[3] * deltas.y.size[4]),
          grid(grid),
          deltas(deltas),
          h(h),
          w(w),
          scale(static_cast<A>(grid.scale)),
          point(2, points) {
        const int64_t rows = grid.kernel[0], columns = grid.kernel[1];
        for (int64_t p = 0; p < points; p++) {
            const int64_t number = p + (grid.without_centre && p >= rows * columns / 2);
            const int64_t row = grid.by_column ? number % rows : number / columns;
            const int64_t column = grid.by_column ? number / rows : number % columns;
            point[0][p] = static_cast<A>(grid.start[0] + row * grid.step[0]);
            point[1][p] = static_cast<A>(grid.start[1] + column * grid.step[1]);
        }
    }

    // One of the output, and what its samples have in common.
    struct Position {
        int64_t image, row, column;
        A y, x;
        const A *delta_y, *delta_x, *mask;
    };

    Position position(int64_t q) const {
        const int64_t out_h = deltas.y.size[3], out_w = deltas.y.size[4];
        const int64_t line = q / out_w;
        Position at{line / out_h, line % out_h, q % out_w, 0, 0, nullptr, nullptr, nullptr};
        at.y = static_cast<A>(at.row * grid.stride[0]);
        at.x = static_cast<A>(at.column * grid.stride[1]);
        at.delta_y = element(deltas.y, at, 0, 0);
        at.delta_x = element(deltas.x, at, 0, 0);
        if (deltas.mask.data != nullptr) at.mask = element(deltas.mask, at, 0, 0);
        return at;
    }

    // Point p of group g, and its modulation; false where it reads zero.
    bool locate(const Position& at, int64_t g, int64_t p, Corners<A>& corners,
                A& modulation) const {
        const int64_t delta = g * deltas.y.stride[1] + p * deltas.y.stride[2];
        modulation = 1;
        if (at.mask != nullptr) {
            modulation = at.mask[g * deltas.mask.stride[1] + p * deltas.mask.stride[2]];
        }
        return corners.locate(at.y + point[0][p] + scale * at.delta_y[delta],
                              at.x + point[1][p] + scale * at.delta_x[delta], h, w);
    }

    // Writes the gradients of a sample's y, x and modulation, those that are wanted.
    void store(const Deltas& grads, const Position& at, int64_t g, int64_t p,
               const A grad[3]) const {
        if (grads.y.data != nullptr) {
            *element(grads.y, at, g, p) = scale * grad[0];
            *element(grads.x, at, g, p) = scale * grad[1];
        }
        if (grads.mask.data != nullptr) *element(grads.mask, at, g, p) = grad[2];
    }

    const int64_t groups, points, positions;

   private:
    static A* element(const Tensor& tensor, const Position& at, int64_t g, int64_t p) {
        const int64_t* stride = tensor.stride;
        return static_cast<A*>(tensor.data) + at.image * stride[0] + g * stride[1] +
               p * stride[2] + at.row * stride[3] + at.column * stride[4];
    }

    const Grid& grid;
    const Deltas& deltas;  // y and x have the same strides
    const int64_t h, w;
    const A scale;
    const Buffers<A> point;
};

}  // namespace DCN_ISA
}  // namespace dcn
