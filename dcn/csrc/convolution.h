// Modulated deformable convolution (arXiv 1811.11168, equation 1).
//
// Forward: threads take tiles of output positions. The samples of a tile, for a few kernel points
// and groups at a time, are gathered into a small matrix, which is multiplied by the packed weights.
//
// Backward: threads take slices of input channels (see Slices). The gradient of a tile's samples
// is a matrix product; while it is spread over the input's gradient, the samples are gathered
// again, and a second product adds them to the weight's gradient.
#pragma once

#include "grid.h"
#include "matmul.h"
#include "slices.h"

namespace dcn {
namespace DCN_ISA {

template <typename T>
class Convolution {
   public:
    using A = typename Compute<T>::type;

    explicit Convolution(const DeformConv2d& args)
        : args(args),
          grid(args.grid, args.deltas, args.input.size[2], args.input.size[3]),
          points(grid.points),
          c_in(args.input.size[1]),
          group_in(args.weight.size[1]),
          groups(c_in / group_in),
          group_out(args.output.size[1] / groups),
          deform_in(c_in / grid.groups),
          width(panel_width<A>(group_out)),
          padded_out(round_up(group_out, width)),
          image_size(args.input.size[2] * args.input.size[3] * c_in) {}

    void forward() const {
        // Groups, and kernel points, at a time.
        const int64_t some = least(groups, most(1, kForwardDepth / (points * group_in)));
        const int64_t depth = some * group_in;
        const int64_t blocks = ceil_div(points * depth, most(kForwardDepth, depth));
        const int64_t block = ceil_div(points, blocks);
        const int64_t panels = groups * (padded_out / width);
        const int64_t sample_row = block * depth + kPad;
        const int64_t sum_row = groups * padded_out + kPad;

        const Buffers<A> packed(panels, points * group_in * width);
        const Buffers<Sample> places(args.threads, kForwardTile * block);
        const Buffers<A> samples(args.threads, kForwardTile * sample_row);
        const Buffers<A> sums(args.threads, kForwardTile * sum_row);
        const Buffers<T> outside(1, c_in);

#pragma omp parallel num_threads(args.threads)
        {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < panels; i++) {
                const int64_t group = i * width / padded_out, first = i * width % padded_out;
                const int64_t row = points * group_in;
                pack_panel(row, group_out - first, width,
                           data<A>(args.weight) + (group * group_out + first) * row, 1, row,
                           packed[i]);
            }

            Sample* const at = places[omp_get_thread_num()];
            A* const sample = samples[omp_get_thread_num()];
            A* const sum = sums[omp_get_thread_num()];
#pragma omp for schedule(dynamic)
            for (int64_t q = 0; q < grid.positions; q += kForwardTile) {
                const int64_t rows = least(kForwardTile, grid.positions - q);
                for (int64_t p0 = 0; p0 < points; p0 += block) {
                    const int64_t p1 = least(p0 + block, points);
                    for (int64_t first = 0; first < groups; first += some) {
                        const Range slice{first * group_in, least(first + some, groups) * group_in};
                        gather_samples(q, rows, p0, p1, slice, outside[0], at, sample, sample_row);
                        const int64_t last = slice.end / group_in * padded_out / width;
                        for (int64_t i = first * padded_out / width; i < last; i++) {
                            const int64_t group = i * width / padded_out;
                            multiply_panel(rows, width, p1 - p0, group_in,
                                           sample + (group - first) * group_in, sample_row,
                                           slice.size(), packed[i] + p0 * group_in * width, p0 > 0,
                                           sum + i * width, sum_row);
                        }
                    }
                }
                write_output(q, rows, sum, sum_row);
            }
        }
    }

    void backward() const {
        const bool of_weight = args.grad_weight.data != nullptr;
        const Slices<A> slices(c_in, args.threads);
        const int64_t slice_groups = least(groups, (slices.size - 2) / group_in + 2);
        // As many kernel points at a time as keep weights and their gradient in the cache.
        const int64_t most_points = most(1, kBackwardWeights / (slices.size * padded_out));
        const int64_t block = ceil_div(points, ceil_div(points, most_points));
        const int64_t grad_row = slice_groups * padded_out + kPad;
        const int64_t sample_row = block * slices.size + kPad + 2 * kLanes<A>;
        // What a slice has of a position's gradients of y, x and mask.
        const int64_t partial =
            least(grid.groups, (slices.size - 2) / deform_in + 2) * points * 3;
        const int64_t budget = args.threads * kPartials / (slices.count * partial);
        const int64_t chunk = least(grid.positions, round_up(most(budget, 1), kBackwardTile));

        const Buffers<A> grads(args.threads, kBackwardTile * grad_row);
        const Buffers<A> samples(args.threads, kBackwardTile * sample_row);
        const Buffers<A> packed(args.threads,
                                block * slice_groups * group_out *
                                    round_up(least(slices.size, group_in), 2 * kLanes<A>));
        const Buffers<A> weights(args.threads, block * slices.size * padded_out);
        const Buffers<A> partials(slices.count, chunk * partial);
        const Buffers<A> sums(args.threads, 3 * points);
        const Buffers<T> outside(1, c_in);
        const Buffers<A> nowhere(args.threads, c_in);

#pragma omp parallel num_threads(args.threads)
        for (int64_t first = 0; first < grid.positions; first += chunk) {
            const int64_t last = least(first + chunk, grid.positions);
            const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < slices.count; i++) {
                for (int64_t p0 = 0; p0 < points; p0 += block) {
                    const Block at{slices[i], p0, least(p0 + block, points)};
                    pack_weights(at, packed[thread]);
                    const int64_t weight_rows = (at.p1 - at.p0) * at.slice.size();
                    std::memset(weights[thread], 0, weight_rows * padded_out * sizeof(A));
                    for (int64_t q = first; q < last; q += kBackwardTile) {
                        const int64_t rows = least(kBackwardTile, last - q);
                        read_grad(at, q, rows, grads[thread], grad_row);
                        grad_samples(at, rows, grads[thread], grad_row, packed[thread],
                                     samples[thread], sample_row);
                        for (int64_t m = 0; m < rows; m++) {
                            spread_samples(at, grid.position(q + m), outside[0], nowhere[thread],
                                           samples[thread] + m * sample_row,
                                           partials[i] + (q + m - first) * partial);
                        }
                        if (of_weight) {
                            grad_weights(at, rows, grads[thread], grad_row, samples[thread],
                                         sample_row, weights[thread]);
                        }
                    }
                    if (of_weight) write_grad_weight(at, weights[thread]);
                }
            }
#pragma omp for
            for (int64_t q = first; q < last; q++) {
                write_grad_deltas(grid.position(q), slices, partials, (q - first) * partial,
                                  sums[thread]);
            }
        }
    }

   private:
    static constexpr int64_t kForwardTile = 48;    // positions; a multiple of every kRows
    static constexpr int64_t kBackwardTile = 96;   // positions; the same
    static constexpr int64_t kForwardDepth = 512;  // columns of samples, unless a group has more
    static constexpr int64_t kBackwardWeights = 64 * 1024;
    static constexpr int64_t kPartials = 512 * 1024;

    using Position = typename SampleGrid<A>::Position;

    // Kernel points [p0, p1) and a slice of input channels.
    struct Block {
        Range slice;
        int64_t p0, p1;
    };

    // Of the output, or its gradient.
    T* output(const Position& at, int64_t channel) const {
        const int64_t* stride = args.output.stride;
        return data<T>(args.output) + at.image * stride[0] + channel * stride[1] +
               at.row * stride[2] + at.column * stride[3];
    }

    // The rows of channels of the pixels around it, and their weights.
    struct Sample {
        const T* row[4];
        A weight[4];
    };

    // The samples of some positions: [position][point][channel]. `places` is where they lie in the last
    // group of offsets, of which the next slice may have more channels.
    void gather_samples(int64_t q, int64_t rows, int64_t p0, int64_t p1, Range slice,
                        const T* outside, Sample* places, A* to, int64_t to_row) const {
        for (int64_t g = slice.begin / deform_in; g * deform_in < slice.end; g++) {
            const Range part = slice.cut({g * deform_in, (g + 1) * deform_in});
            if (part.begin == g * deform_in) locate(q, rows, g, p0, p1, outside, places);
            const Sample* at = places;
            for (int64_t m = 0; m < rows; m++) {
                A* sample = to + m * to_row + part.begin - slice.begin;
                for (int64_t p = p0; p < p1; p++, at++, sample += slice.size()) {
                    const T* row[4];
                    for (int i = 0; i < 4; i++) row[i] = at->row[i] + part.begin;
                    gather<false>(part.size(), row, at->weight, sample);
                }
            }
        }
    }

    void locate(int64_t q, int64_t rows, int64_t g, int64_t p0, int64_t p1, const T* outside,
                Sample* to) const {
        for (int64_t m = 0; m < rows; m++) {
            const Position at = grid.position(q + m);
            const T* image = data<T>(args.input) + at.image * image_size;
            for (int64_t p = p0; p < p1; p++, to++) {
                Corners<A> corners;
                A modulation;
                const bool inside = grid.locate(at, g, p, corners, modulation);
                for (int i = 0; i < 4; i++) {
                    const bool reads = inside && corners.pixel[i] >= 0;
                    to->row[i] = reads ? image + corners.pixel[i] * c_in : outside;
                    to->weight[i] = inside ? corners.weight[i] * modulation : 0;
                }
            }
        }
    }

    // Of whole groups' output channels, those that follow each other in a buffer too.
    int64_t run_of(int64_t channels) const {
        return padded_out == group_out ? channels : group_out;
    }

    void write_output(int64_t q, int64_t rows, A* sum, int64_t sum_row) const {
        T* image[kForwardTile];
        for (int64_t m = 0; m < rows; m++) image[m] = output(grid.position(q + m), 0);
        const int64_t stride = args.output.stride[1];
        const int64_t run = run_of(groups * group_out);
        for (int64_t c = 0; c < groups * group_out; c += run, sum += padded_out) {
            if (args.bias.data != nullptr) {
                const A* bias = data<A>(args.bias) + c;
                for (int64_t m = 0; m < rows; m++) {
                    for (int64_t o = 0; o < run; o++) sum[m * sum_row + o] += bias[o];
                }
            }
            store_rows(rows, run, sum, sum_row, image, stride);
            for (int64_t m = 0; m < rows; m++) image[m] += run * stride;
        }
    }

    // Calls work(group, its channels in the slice) for every group that the slice has a part of.
    template <typename Work>
    void for_groups(Range slice, Work work) const {
        for (int64_t g = slice.begin / group_in; g * group_in < slice.end; g++) {
            work(g, slice.cut({g * group_in, (g + 1) * group_in}));
        }
    }

    // Of every point and group, panels of input channels: [output channel][input channel].
    void pack_weights(const Block& at, A* to) const {
        for (int64_t p = at.p0; p < at.p1; p++) {
            for_groups(at.slice, [&](int64_t g, Range part) {
                const int64_t columns = panel_width<A>(part.size()), row = points * group_in;
                const A* weight = data<A>(args.weight) + g * group_out * row + p * group_in;
                for (int64_t c = part.begin; c < part.end; c += columns, to += group_out * columns) {
                    pack_panel(group_out, part.end - c, columns, weight + c - g * group_in, row, 1,
                               to);
                }
            });
        }
    }

    // The output's gradient in the groups of the slice, each padded to whole panels.
    void read_grad(const Block& at, int64_t q, int64_t rows, A* to, int64_t to_row) const {
        T* first[kBackwardTile];
        for (int64_t m = 0; m < rows; m++) first[m] = output(grid.position(q + m), 0);
        const int64_t stride = args.output.stride[1];
        const int64_t begin = at.slice.begin / group_in * group_out;
        const int64_t end = ceil_div(at.slice.end, group_in) * group_out;
        const int64_t run = run_of(end - begin);
        for (int64_t c = begin; c < end; c += run, to += padded_out) {
            T* image[kBackwardTile];
            for (int64_t m = 0; m < rows; m++) image[m] = first[m] + c * stride;
            load_rows(rows, run, image, stride, to, to_row);
        }
    }

    // The gradient of the samples: [position][point][channel].
    void grad_samples(const Block& at, int64_t rows, const A* grad, int64_t grad_row,
                      const A* packed, A* to, int64_t to_row) const {
        for (int64_t p = at.p0; p < at.p1; p++) {
            const A* part_grad = grad;
            for_groups(at.slice, [&](int64_t, Range part) {
                // A panel may write beyond the part; what comes next, comes later.
                const int64_t columns = panel_width<A>(part.size());
                for (int64_t c = 0; c < part.size(); c += columns, packed += group_out * columns) {
                    multiply_panel(rows, columns, 1, group_out, part_grad, grad_row, 0, packed,
                                   false, to + c, to_row);
                }
                part_grad += padded_out;
                to += part.size();
            });
        }
    }

    // Of one position: adds to the input's gradient, replaces the samples' gradients by the samples,
    // and writes the slice's part of the gradients of y, x and the mask.
    void spread_samples(const Block& block, const Position& at, const T* outside, A* nowhere,
                        A* samples, A* partial) const {
        const int64_t image = at.image * image_size;
        const int64_t first = block.slice.begin / deform_in;
        const bool of_input = args.grad_input.data != nullptr;
        for (int64_t p = block.p0; p < block.p1; p++) {
            for (int64_t g = first; g * deform_in < block.slice.end; g++) {
                const Range part = block.slice.cut({g * deform_in, (g + 1) * deform_in});
                A* const grad = partial + ((g - first) * points + p) * 3;
                A* const sample = samples;
                samples += part.size();
                Corners<A> corners;
                A modulation;
                if (!grid.locate(at, g, p, corners, modulation)) {
                    grad[0] = grad[1] = grad[2] = 0;
                    std::memset(sample, 0, part.size() * sizeof(A));
                    continue;
                }
                const T* row[4];
                A* grad_row[4];
                A weight[4], dot[4];
                for (int i = 0; i < 4; i++) {
                    const int64_t pixel = corners.pixel[i];
                    const int64_t at_pixel = image + pixel * c_in + part.begin;
                    const bool spread = of_input && pixel >= 0;
                    row[i] = pixel < 0 ? outside : data<T>(args.input) + at_pixel;
                    grad_row[i] = spread ? data<A>(args.grad_input) + at_pixel : nowhere;
                    weight[i] = corners.weight[i] * modulation;
                }
                spread(part.size(), row, weight, sample, grad_row, dot);
                corners.gradients(dot, modulation, grad);
            }
        }
    }

    // Adds to the gradient of the block's weights: [point][input channel][output channel].
    void grad_weights(const Block& at, int64_t rows, const A* grad, int64_t grad_row,
                      const A* samples, int64_t sample_row, A* to) const {
        const bool one_group = at.slice.end <= (at.slice.begin / group_in + 1) * group_in;
        const int64_t count = at.p1 - at.p0;
        if (one_group) {  // all points at once, as there is no other group between them
            multiply_transposed(count * at.slice.size(), padded_out, width, rows, samples,
                                sample_row, grad, grad_row, to, padded_out);
            return;
        }
        for (int64_t p = 0; p < count; p++) {
            const A* part_grad = grad;
            for_groups(at.slice, [&](int64_t, Range part) {
                multiply_transposed(part.size(), padded_out, width, rows, samples, sample_row,
                                    part_grad, grad_row, to, padded_out);
                part_grad += padded_out;
                samples += part.size();
                to += part.size() * padded_out;
            });
        }
    }

    void write_grad_weight(const Block& at, const A* from) const {
        for (int64_t p = at.p0; p < at.p1; p++) {
            for_groups(at.slice, [&](int64_t g, Range part) {
                for (int64_t o = 0; o < group_out; o++) {
                    A* to = data<A>(args.grad_weight) +
                            ((g * group_out + o) * points + p) * group_in - g * group_in;
                    for (int64_t c = part.begin; c < part.end; c++) {
                        to[c] += from[(c - part.begin) * padded_out + o];
                    }
                }
                from += part.size() * padded_out;
            });
        }
    }

    // Sums what the slices have of the gradients of offset and mask.
    void write_grad_deltas(const Position& at, const Slices<A>& slices, const Buffers<A>& partials,
                           int64_t first, A* sum) const {
        for (int64_t g = 0; g < grid.groups; g++) {
            const int64_t slice = g * deform_in / slices.size;
            const int64_t last_slice = ((g + 1) * deform_in - 1) / slices.size;
            std::memset(sum, 0, 3 * points * sizeof(A));
            for (int64_t i = slice; i <= last_slice; i++) {
                const int64_t own = (g - slices[i].begin / deform_in) * points * 3;
                for (int64_t j = 0; j < 3 * points; j++) sum[j] += partials[i][first + own + j];
            }
            grid.store(args.grad_deltas, at, g, sum);
        }
    }

    const DeformConv2d& args;
    const SampleGrid<A> grid;
    const int64_t points, c_in, group_in, groups, group_out, deform_in;
    const int64_t width;       // of a panel of output channels
    const int64_t padded_out;  // output channels of a group, in whole panels
    const int64_t image_size;
};

}  // namespace DCN_ISA
}  // namespace dcn
