// Where the samples of a convolution-like operator lie, and by how much each counts.
#pragma once

#include "sampling.h"
#include "vectors.h"

namespace dcn {
namespace DCN_ISA {

// Samples of a group at one position: a block of kernel points, of which those left over say nothing.
template <typename A>
struct Located {
    static constexpr int64_t kPoints = 16;

    // How far below and right of the pixel, 0 to 1; the modulation; its products with the weights of
    // the four pixels around the sample: upper left, upper right, lower left, lower right.
    A y[kPoints], x[kPoints], mask[kPoints], weight[4][kPoints];
    // The upper left pixel, and a bit for each of the four that is inside the map.
    Index<A> pixel[kPoints], corners[kPoints];
};

// The rows of channels around sample p, in an image with `width` of them in a line; those outside of it
// are `outside`.
template <typename Data>
struct Rows {
    Rows() = default;
    template <typename A>
    Rows(const Located<A>& at, int64_t p, int64_t channels, int64_t width, Data* image,
         Data* outside) {
        Data* const first = image + static_cast<int64_t>(at.pixel[p]) * channels;
        Data* const below = first + width * channels;
        const Index<A> inside = at.corners[p];
        row[0] = inside & 1 ? first : outside;
        row[1] = inside & 2 ? first + channels : outside;
        row[2] = inside & 4 ? below : outside;
        row[3] = inside & 8 ? below + channels : outside;
    }
    Data* row[4];
};

inline bool has_data(const Deltas& deltas) {
    return deltas.y.data != nullptr || deltas.mask.data != nullptr;
}

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
          paired(deltas.y.stride[2] == 2 &&
                 (distance(deltas) == 1 || distance(deltas) == -1)),
          last_delta(distance(deltas) > 0 ? end(deltas.x) : end(deltas.y)),
          last_mask(end(deltas.mask)),
          point(2, round_up(points, Located<A>::kPoints)) {
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

    // The one after it.
    void advance(Position& at) const {
        if (++at.column == deltas.y.size[4]) {
            const int64_t line = at.image * deltas.y.size[3] + at.row + 1;
            at = position(line * deltas.y.size[4]);
            return;
        }
        at.x += static_cast<A>(grid.stride[1]);
        at.delta_y += deltas.y.stride[4];
        at.delta_x += deltas.y.stride[4];
        if (at.mask != nullptr) at.mask += deltas.mask.stride[4];
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

    // Points p0 to p0 + Located<A>::kPoints of group g; Index<A> must hold the map's pixels.
    void locate(const Position& at, int64_t g, int64_t p0, Located<A>& to) const {
        constexpr int64_t size = Located<A>::kPoints, lanes = kLanes<A>;
        const int64_t stride = deltas.y.stride[2], mask_stride = deltas.mask.stride[2];
        const int64_t first = g * deltas.y.stride[1] + p0 * stride;
        const A *from_y = at.delta_y + first, *from_x = at.delta_x + first;
        const A* from_mask = at.mask + g * deltas.mask.stride[1] + p0 * mask_stride;
        // Most layouts have pairs that follow each other, x or y first; more than there are of them
        // may be read where the tensor goes on.
        const A* const pairs = from_y < from_x ? from_y : from_x;
        if (paired && pairs + 2 * size <= last_delta) {
#pragma GCC unroll 8
            for (int64_t p = 0; p < size; p += lanes) {
                const auto a = load_vector(pairs + 2 * p), b = load_vector(pairs + 2 * p + lanes);
                const auto even = kEven<A>(a, b);
                const auto odd = kOdd<A>(a, b);
                store_vector(to.y + p, pairs == from_y ? even : odd);
                store_vector(to.x + p, pairs == from_y ? odd : even);
            }
        } else {
            for (int64_t p = 0; p < least(size, points - p0); p++) {
                to.y[p] = from_y[p * stride];
                to.x[p] = from_x[p * stride];
            }
        }
        if (at.mask == nullptr) {
            for (int64_t p = 0; p < size; p++) to.mask[p] = 1;
        } else if (mask_stride == 1 && from_mask + size <= last_mask) {
#pragma GCC unroll 8
            for (int64_t p = 0; p < size; p += lanes) {
                store_vector(to.mask + p, load_vector(from_mask + p));
            }
        } else {
            for (int64_t p = 0; p < least(size, points - p0); p++) {
                to.mask[p] = from_mask[p * mask_stride];
            }
        }
        place(at.y, at.x, point[0] + p0, point[1] + p0, to);
    }

    // Writes the gradients of y, x and modulation of all points of a group, those that are wanted.
    void store(const Deltas& grads, const Position& at, int64_t g, const A* grad) const {
        if (grads.y.data != nullptr) {
            A *y = element(grads.y, at, g, 0), *x = element(grads.x, at, g, 0);
            const int64_t stride = grads.y.stride[2];
            for (int64_t p = 0; p < points; p++) {
                y[p * stride] = scale * grad[3 * p];
                x[p * stride] = scale * grad[3 * p + 1];
            }
            for (int64_t p = 0; grid.clamped && p < points; p++) {
                const int64_t delta = g * deltas.y.stride[1] + p * deltas.y.stride[2];
                if (is_held(at.y + point[0][p] + scale * at.delta_y[delta], h)) y[p * stride] = 0;
                if (is_held(at.x + point[1][p] + scale * at.delta_x[delta], w)) x[p * stride] = 0;
            }
        }
        if (grads.mask.data != nullptr) {
            A* mask = element(grads.mask, at, g, 0);
            const int64_t stride = grads.mask.stride[2];
            for (int64_t p = 0; p < points; p++) mask[p * stride] = grad[3 * p + 2];
        }
    }

    const int64_t groups, points, positions;

   private:
    // Of offsets y and x to pixels and weights.
    void place(A first_y, A first_x, const A* point_y, const A* point_x, Located<A>& to) const {
        using Vec = typename Vector<A>::type;
        using Int = typename Vector<Index<A>>::type;
        const A height = static_cast<A>(h), width = static_cast<A>(w);
        const Index<A> rows = static_cast<Index<A>>(h), columns = static_cast<Index<A>>(w);
#pragma GCC unroll 8
        for (int64_t p = 0; p < Located<A>::kPoints; p += kLanes<A>) {
            Vec y = first_y + load_vector(point_y + p) + scale * load_vector(to.y + p);
            Vec x = first_x + load_vector(point_x + p) + scale * load_vector(to.x + p);
            const Vec mask = load_vector(to.mask + p);
            Int inside = (y >= -1) & (y < height) & (x >= -1) & (x < width);
            if (grid.clamped) {
                inside = (y - y == 0) & (x - x == 0);  // finite
                y = y > 0 ? y : Vec{}, x = x > 0 ? x : Vec{};
                y = y < height - 1 ? y : Vec{} + (height - 1);
                x = x < width - 1 ? x : Vec{} + (width - 1);
            }
            y = inside ? y : Vec{}, x = inside ? x : Vec{};
            const Int cut_y = __builtin_convertvector(y, Int);
            const Int cut_x = __builtin_convertvector(x, Int);
            // Comparisons are -1 where they hold.
            Int low_y = cut_y + (__builtin_convertvector(cut_y, Vec) > y);
            Int low_x = cut_x + (__builtin_convertvector(cut_x, Vec) > x);
            if (grid.clamped) {  // the slope at the last pixel is that from the one before
                low_y += (low_y == rows - 1) & (rows > 1 ? -1 : 0);
                low_x += (low_x == columns - 1) & (columns > 1 ? -1 : 0);
            }
            y -= __builtin_convertvector(low_y, Vec), x -= __builtin_convertvector(low_x, Vec);
            // Also from above, as h and w may be beyond what A holds exactly.
            const Int top = inside & (low_y >= 0) & (low_y < rows);
            const Int bottom = inside & (low_y < rows - 1);
            const Int left = (low_x >= 0) & (low_x < columns), right = low_x < columns - 1;
            const Vec upper = (1 - y) * mask, lower = y * mask;
            store_vector(to.corners + p, (top & left & 1) | (top & right & 2) |
                                             (bottom & left & 4) | (bottom & right & 8));
            store_vector(to.pixel + p, low_y * columns + low_x);
            store_vector(to.y + p, y);
            store_vector(to.x + p, x);
            store_vector(to.weight[0] + p, upper * (1 - x));
            store_vector(to.weight[1] + p, upper * x);
            store_vector(to.weight[2] + p, lower * (1 - x));
            store_vector(to.weight[3] + p, lower * x);
        }
    }

    // Elements from an offset y to its x.
    static int64_t distance(const Deltas& deltas) {
        return static_cast<const A*>(deltas.x.data) - static_cast<const A*>(deltas.y.data);
    }
    // Behind the last element.
    static const A* end(const Tensor& tensor) {
        if (tensor.data == nullptr) return nullptr;
        const A* last = static_cast<const A*>(tensor.data);
        for (int i = 0; i < 5; i++) last += (tensor.size[i] - 1) * tensor.stride[i];
        return last + 1;
    }

    // Along an axis that is clamped: whether moving a sample changes nothing.
    static bool is_held(A position, int64_t size) {
        return !(position >= 0 && position <= static_cast<A>(size - 1)) || size == 1;
    }

    static A* element(const Tensor& tensor, const Position& at, int64_t g, int64_t p) {
        const int64_t* stride = tensor.stride;
        return static_cast<A*>(tensor.data) + at.image * stride[0] + g * stride[1] +
               p * stride[2] + at.row * stride[3] + at.column * stride[4];
    }

    const Grid& grid;
    const Deltas& deltas;  // y and x have the same strides
    const int64_t h, w;
    const A scale;
    const bool paired;                         // the offsets y and x of a point, and of the next one
    const A *const last_delta, *const last_mask;  // behind their last elements
    const Buffers<A> point;
};

}  // namespace DCN_ISA
}  // namespace dcn
