// Modulated deformable RoI pooling (arXiv 1811.11168, equation 2); RoIAlign without offset and mask.
//
// Bilinear sampling on a grid is separable, so a bin is a weighted sum of a few pixels, each read
// once: the weights of a bin's samples are added up along each axis first.
#pragma once

#include "sampling.h"
#include "slices.h"

namespace dcn {
namespace DCN_ISA {

// Along one axis, the cells that a bin's samples read: of each its weight, the sum over samples, and
// its slope, the weight's derivative by a shift of the bin. Weights add up to the samples inside.
template <typename A>
struct BinAxis {
    int64_t count;
    int64_t* cell;
    A* weight;
    A* slope;

    // The memory behind it.
    BinAxis rest() const { return {0, cell + count, weight + count, slope + count}; }

    // At start + (first + (i + 0.5)/samples)·bin + shift for i < samples, on a map of `size` cells.
    void set(A start, int64_t first, A bin, int64_t samples, A shift, int64_t size) {
        count = 0;
        for (int64_t i = 0; i < samples; i++) {
            const A step = (static_cast<A>(i) + A(0.5)) / static_cast<A>(samples);
            add_sample(start + (static_cast<A>(first) + step) * bin + shift, size);
        }
    }

   private:
    void add_sample(A position, int64_t size) {
        if (!(position >= -1 && position <= static_cast<A>(size))) return;
        // Beyond the first and the last cell's centre the map goes on as it is there.
        if (!(position >= 0)) return add(0, 1, 0);
        const int64_t low = floor(position);
        if (low >= size - 1) return add(size - 1, 1, 0);
        const A part = position - static_cast<A>(low);
        add(low, 1 - part, -1);
        add(low + 1, part, 1);
    }

    void add(int64_t at, A more_weight, A more_slope) {
        // Samples come in order, up or down: a cell that is there is among the last three.
        for (int64_t i = count - 1; i >= most(count - 3, 0); i--) {
            if (cell[i] == at) {
                weight[i] += more_weight;
                slope[i] += more_slope;
                return;
            }
        }
        cell[count] = at;
        weight[count] = more_weight;
        slope[count] = more_slope;
        count++;
    }
};

template <typename T>
class RoIPooling {
   public:
    using A = typename Compute<T>::type;

    explicit RoIPooling(const DeformRoIPool& args)
        : args(args),
          rois(args.output.size[0]),
          channels(args.input.size[1]),
          h(args.input.size[2]),
          w(args.input.size[3]),
          pooled_h(args.output.size[2]),
          pooled_w(args.output.size[3]),
          bins(pooled_h * pooled_w),
          of_input(args.grad_input.data != nullptr),
          of_shift(args.grad_offset.data != nullptr || args.grad_mask.data != nullptr) {}

    void forward() const {
        if (rois == 0) return;
        const int64_t row_size = channels + kPad;
        const Workspace work(*this, bins * row_size);
#pragma omp parallel for schedule(dynamic) num_threads(args.threads)
        for (int64_t k = 0; k < rois; k++) {
            const int thread = omp_get_thread_num();
            A* const pooled = work.channels[thread];
            for_bins(k, work.axes(thread), [&](int64_t bin, const Axis& y, const Axis& x,
                                                      A share, A modulation) {
                A* const to = pooled + bin * row_size;
                std::memset(to, 0, channels * sizeof(A));
                for_quads(y, x, [&](const Quad& quad) {
                    const T* row[4];
                    A weight[4];
                    for (int i = 0; i < 4; i++) {
                        row[i] = quad.pixel[i] < 0 ? work.outside[0] : pixel(k, quad.pixel[i]);
                        weight[i] = quad.pixel[i] < 0 ? 0 : quad.weight[i] * share * modulation;
                    }
                    gather<true>(channels, row, weight, to);
                });
            });
            T** const image = bin_images(k, 0, work.images[thread]);
            store_rows(bins, channels, pooled, row_size, image, args.output.stride[1]);
        }
    }

    void backward() const {
        if (rois == 0) return;
        const Slices<A> slices(channels, args.threads);
        const int64_t row_size = slices.size + kPad;
        const Workspace work(*this, bins * row_size);
        const Buffers<A> nowhere(args.threads, slices.size);
        const Buffers<A> partials(slices.count, of_shift ? rois * bins * 3 : 0);
#pragma omp parallel num_threads(args.threads)
        {
            const int thread = omp_get_thread_num();
            A* const grads = work.channels[thread];
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < slices.count; i++) {
                const Range slice = slices[i];
                for (int64_t k = 0; k < rois; k++) {
                    T** const image = bin_images(k, slice.begin, work.images[thread]);
                    load_rows(bins, slice.size(), image, args.output.stride[1], grads, row_size);
                    for_bins(k, work.axes(thread), [&](int64_t bin, const Axis& y,
                                                              const Axis& x, A share,
                                                              A modulation) {
                        spread_bin(k, slice, y, x, share, modulation, grads + bin * row_size,
                                   work.outside[0], nowhere[thread],
                                   of_shift ? partials[i] + (k * bins + bin) * 3 : nullptr);
                    });
                }
            }
            if (of_shift) {
#pragma omp for
                for (int64_t k = 0; k < rois; k++) write_grads(k, slices, partials);
            }
        }
    }

   private:
    using Axis = BinAxis<A>;

    struct Box {
        A y, x, height, width;  // in pixels of the map
    };

    // Four pixels of a bin; -1 where there are fewer.
    struct Quad {
        int64_t pixel[4];
        A weight[4];
        A slope_y[4], slope_x[4];
    };

    // The axes of a bin of each column, and of the row that is at work.
    struct Axes {
        Axis y;
        Axis* x;
    };

    struct Workspace {
        Workspace(const RoIPooling& pooling, int64_t channel_count)
            : most_y(pooling.h),
              // Columns lie side by side, and each may read three cells of its neighbours.
              most_x(pooling.w + 3 * pooling.pooled_w + 1),
              channels(pooling.args.threads, channel_count),
              images(pooling.args.threads, pooling.bins),
              outside(1, pooling.channels),
              axis(pooling.args.threads, pooling.pooled_w),
              cells(pooling.args.threads, most_y + most_x),
              values(pooling.args.threads, 2 * (most_y + most_x)) {}

        Axes axes(int thread) const {
            int64_t* const cell = cells[thread];
            A* const value = values[thread];
            const Axes result{{0, cell, value, value + most_y}, axis[thread]};
            A* const rest = value + 2 * most_y;
            result.x[0] = {0, cell + most_y, rest, rest + most_x};
            return result;
        }

        int64_t most_y, most_x;
        Buffers<A> channels;
        Buffers<T*> images;
        Buffers<T> outside;
        Buffers<Axis> axis;
        Buffers<int64_t> cells;
        Buffers<A> values;
    };

    // Edges are shifted by half a pixel: a pixel's value is that of its centre.
    Box box(int64_t k) const {
        const A* corner = static_cast<const A*>(args.boxes.data) + 4 * k;
        const A scale = static_cast<A>(args.spatial_scale);
        const A x1 = corner[0] * scale - A(0.5), y1 = corner[1] * scale - A(0.5);
        const A x2 = corner[2] * scale - A(0.5), y2 = corner[3] * scale - A(0.5);
        return {y1, x1, y2 - y1, x2 - x1};
    }

    int64_t samples(A bin, int64_t size) const {
        if (args.sampling_ratio > 0) return args.sampling_ratio;
        if (!(bin > 0 && bin <= 2 * static_cast<A>(size))) return 0;
        return -floor(-bin);
    }

    // Calls work(bin, y, x, one sample's share of the mean, modulation) for all bins of RoI k.
    template <typename Work>
    void for_bins(int64_t k, Axes axes, Work work) const {
        const Box roi = box(k);
        const A bin_h = roi.height / static_cast<A>(pooled_h);
        const A bin_w = roi.width / static_cast<A>(pooled_w);
        const int64_t samples_y = samples(bin_h, h), samples_x = samples(bin_w, w);
        const A share = 1 / (static_cast<A>(samples_y) * static_cast<A>(samples_x));
        const A* offset = static_cast<const A*>(args.offset.data);
        const A* mask = static_cast<const A*>(args.mask.data);
        const A gamma = static_cast<A>(args.gamma);
        for (int64_t i = 0; i < pooled_h; i++) {
            for (int64_t j = 0; j < pooled_w; j++) {
                const int64_t bin = i * pooled_w + j;
                // Those of all columns are kept, unless every bin has its own.
                Axis& x = axes.x[offset == nullptr ? j : 0];
                A shift_y = 0, shift_x = 0;
                if (offset != nullptr) {
                    shift_x = offset[2 * k * bins + bin] * (roi.width * gamma);
                    shift_y = offset[(2 * k + 1) * bins + bin] * (roi.height * gamma);
                }
                if (offset != nullptr || j == 0) {
                    axes.y.set(roi.y, i, bin_h, samples_y, shift_y, h);
                }
                if (offset != nullptr || i == 0) {
                    if (offset == nullptr && j > 0) x = axes.x[j - 1].rest();
                    x.set(roi.x, j, bin_w, samples_x, shift_x, w);
                }
                work(bin, axes.y, x, share,
                     mask == nullptr ? A(1) : mask[k * bins + bin]);
            }
        }
    }

    // Calls work(quad) for the pixels of a bin, four at a time.
    template <typename Work>
    void for_quads(const Axis& y, const Axis& x, Work work) const {
        Quad quad;
        int filled = 0;
        for (int64_t i = 0; i < y.count; i++) {
            for (int64_t j = 0; j < x.count; j++) {
                quad.pixel[filled] = y.cell[i] * w + x.cell[j];
                quad.weight[filled] = y.weight[i] * x.weight[j];
                quad.slope_y[filled] = y.slope[i] * x.weight[j];
                quad.slope_x[filled] = y.weight[i] * x.slope[j];
                if (++filled == 4) {
                    work(quad);
                    filled = 0;
                }
            }
        }
        if (filled == 0) return;
        for (; filled < 4; filled++) {
            quad.pixel[filled] = -1;
            quad.weight[filled] = quad.slope_y[filled] = quad.slope_x[filled] = 0;
        }
        work(quad);
    }

    int64_t image_of(int64_t k) const { return static_cast<const int64_t*>(args.index.data)[k]; }

    const T* pixel(int64_t k, int64_t index) const {
        return static_cast<const T*>(args.input.data) +
               (image_of(k) * h * w + index) * channels;
    }

    // Where the bins of RoI k lie in the output.
    T** bin_images(int64_t k, int64_t channel, T** images) const {
        const int64_t* stride = args.output.stride;
        T* roi = static_cast<T*>(args.output.data) + k * stride[0] + channel * stride[1];
        for (int64_t bin = 0; bin < bins; bin++) {
            images[bin] =
                roi + bin / pooled_w * stride[2] + bin % pooled_w * stride[3];
        }
        return images;
    }

    // Adds a bin to the input's gradient; writes the slice's part of those of a shift in y and x,
    // and of the modulation.
    void spread_bin(int64_t k, Range slice, const Axis& y, const Axis& x, A share, A modulation,
                    const A* grad, const T* outside, A* nowhere, A* partial) const {
        A grad_y = 0, grad_x = 0, grad_mask = 0;
        A* const grad_input = static_cast<A*>(args.grad_input.data) +
                              image_of(k) * h * w * channels + slice.begin;
        for_quads(y, x, [&](const Quad& quad) {
            A* to[4];
            A weight[4];
            for (int i = 0; i < 4; i++) {
                to[i] = quad.pixel[i] < 0 || !of_input ? nowhere : grad_input + quad.pixel[i] * channels;
                weight[i] = quad.pixel[i] < 0 ? 0 : quad.weight[i] * share * modulation;
            }
            if (of_input) scatter(slice.size(), grad, weight, to);
            if (partial == nullptr) return;
            const T* row[4];
            A dot[4];
            for (int i = 0; i < 4; i++) {
                row[i] = quad.pixel[i] < 0 ? outside : pixel(k, quad.pixel[i]) + slice.begin;
            }
            dots(slice.size(), grad, row, dot);
            for (int i = 0; i < 4; i++) {
                grad_y += quad.slope_y[i] * dot[i];
                grad_x += quad.slope_x[i] * dot[i];
                grad_mask += quad.weight[i] * dot[i];
            }
        });
        if (partial == nullptr) return;
        const bool empty = y.count == 0 || x.count == 0;  // the share may be infinite then
        partial[0] = empty ? 0 : grad_y * share * modulation;
        partial[1] = empty ? 0 : grad_x * share * modulation;
        partial[2] = empty ? 0 : grad_mask * share;
    }

    // Sums what the slices have of the gradients of offset and mask.
    void write_grads(int64_t k, const Slices<A>& slices, const Buffers<A>& partials) const {
        const Box roi = box(k);
        const A gamma = static_cast<A>(args.gamma);
        const A unit_y = finite_or_zero(roi.height * gamma);
        const A unit_x = finite_or_zero(roi.width * gamma);
        for (int64_t bin = 0; bin < bins; bin++) {
            A grad[3] = {0, 0, 0};
            for (int64_t i = 0; i < slices.count; i++) {
                for (int j = 0; j < 3; j++) grad[j] += partials[i][(k * bins + bin) * 3 + j];
            }
            if (args.grad_offset.data != nullptr) {
                A* to = static_cast<A*>(args.grad_offset.data) + 2 * k * bins + bin;
                to[0] = grad[1] * unit_x;
                to[bins] = grad[0] * unit_y;
            }
            if (args.grad_mask.data != nullptr) {
                static_cast<A*>(args.grad_mask.data)[k * bins + bin] = grad[2];
            }
        }
    }

    static A finite_or_zero(A value) { return value - value == 0 ? value : 0; }

    const DeformRoIPool& args;
    const int64_t rois, channels, h, w, pooled_h, pooled_w, bins;
    const bool of_input, of_shift;  // which gradients are wanted
};

}  // namespace DCN_ISA
}  // namespace dcn
