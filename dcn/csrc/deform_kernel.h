// Local deformable kernels of a depthwise convolution (arXiv 1910.02940, section 3). Every output
// position reads its kernel from the weight, the scope, as a deformable convolution reads its samples
// from an image: the scope is a small map with a row of channels per cell.
//
// Forward: threads take positions. Backward: see ByChannels.
#pragma once

#include "grid.h"
#include "slices.h"

namespace dcn {
namespace DCN_ISA {

// A vector of channels, or the channels that are left over one by one.
template <typename A>
struct Whole {
    using Value = typename Vector<A>::type;
    static constexpr int64_t size = kLanes<A>;
    template <typename Data>
    static Value get(const Data* from) {
        return load_vector(from);
    }
    template <typename Data>
    static void put(Data* to, Value value) {
        store_vector(to, value);
    }
};
template <typename A>
struct Single {
    using Value = A;
    static constexpr int64_t size = 1;
    template <typename Data>
    static Value get(const Data* from) {
        return load(*from);
    }
    template <typename Data>
    static void put(Data* to, Value value) {
        store(*to, value);
    }
};

// A sample between four rows of channels, and how it changes with its place.
template <typename Lanes, typename A>
struct Interpolated {
    using Value = typename Lanes::Value;
    template <typename Data>
    Interpolated(const Rows<Data>& rows, int64_t c, A y, A x) {
        const Value r0 = Lanes::get(rows.row[0] + c), r1 = Lanes::get(rows.row[1] + c);
        const Value r2 = Lanes::get(rows.row[2] + c), r3 = Lanes::get(rows.row[3] + c);
        const Value upper = r0 + x * (r1 - r0), lower = r2 + x * (r3 - r2);
        value = upper + y * (lower - upper);
        by_y = lower - upper;
        by_x = (r1 - r0) + y * ((r3 - r2) - (r1 - r0));
    }
    Value value, by_y, by_x;
};

// `Moving` samples of the input are those of a deformable convolution, of one group.
template <typename T, bool Moving>
class DeformKernel {
   public:
    using A = typename Compute<T>::type;

    explicit DeformKernel(const LocalDeformKernel& args)
        : args(args),
          scope(args.scope_grid, args.scope_deltas, args.weight.size[0], args.weight.size[1]),
          image(args.grid, args.deltas, args.input.size[2], args.input.size[3]),
          points(scope.points),
          blocks(ceil_div(points, kPoints)),
          channels(args.input.size[1]),
          group(channels / scope.groups),
          height(args.input.size[2]),
          width(args.input.size[3]),
          numbers((Moving ? 6 : 3) * points) {}

    void forward() const {
        const Buffers<Located<A>> kernels(args.threads, blocks), samples(args.threads, blocks);
        const Buffers<A> sums(args.threads, group), no_cell(1, group);
        const Buffers<T> outside(1, group);
#pragma omp parallel num_threads(args.threads)
        {
            const int thread = omp_get_thread_num();
            A* const sum = sums[thread];
#pragma omp for schedule(dynamic, kTile)
            for (int64_t q = 0; q < scope.positions; q++) {
                const Position at = position(q);
                for (int64_t g = 0; g < scope.groups; g++) {
                    const A* bias = data<A>(args.bias);
                    for (int64_t c = 0; c < group; c++) sum[c] = bias ? bias[g * group + c] : 0;
                    const Call call{kernels[thread], samples[thread], g * group, {0, group}};
                    locate(at, g, call);
                    sum_points(call, at, outside[0], no_cell[0], sum);
                    T* const to = data<T>(args.output) + q * channels + g * group;
                    for (int64_t c = 0; c < group; c++) store(to[c], sum[c]);
                }
            }
        }
    }

    void backward() const {
        const Buffers<Located<A>> kernels(args.threads, blocks), samples(args.threads, blocks);
        const Buffers<A> grads(args.threads, group), no_cell(1, group);
        const Buffers<A> nowhere(args.threads, group);
        const Buffers<T> outside(1, group);
        const ByChannels<A> by_channels{
            args.threads, args.input.size[0], scope.groups, group, scope.positions, numbers,
            has_data(args.grad_scope_deltas) || has_data(args.grad_deltas)};
        // All images add to the gradient of the scope.
        by_channels.run(
            false, *this,
            [&](int64_t thread, const Position& at, int64_t g, Range range, int64_t q, A* sums) {
                const Call call{kernels[thread], samples[thread], g * group, range};
                locate(at, g, call);
                const T* const from = data<T>(args.output) + q * channels + g * group;
                A* const grad = grads[thread];
                for (int64_t c = range.begin; c < range.end; c++) grad[c] = load(from[c]);
                spread(call, at, grad, outside[0], no_cell[0], nowhere[thread], sums);
            },
            [&](const Position& at, int64_t g, const A* sums) {
                scope.store(args.grad_scope_deltas, at.scope, g, sums);
                if constexpr (Moving) {
                    image.store(args.grad_deltas, at.image, 0, sums + 3 * points);
                }
            });
    }

    struct Position {
        typename SampleGrid<A>::Position scope, image;
    };

    Position position(int64_t q) const {
        Position at{scope.position(q), {}};
        if constexpr (Moving) at.image = image.position(q);
        return at;
    }

    void advance(Position& at) const {
        scope.advance(at.scope);
        if constexpr (Moving) image.advance(at.image);
    }

   private:
    static constexpr int64_t kTile = 16;  // positions that a thread takes at a time
    static constexpr int64_t kPoints = Located<A>::kPoints;

    using Vec = typename Vector<A>::type;

    // What is read at a position, in cells and in pixels; and the channels that this is for, from the
    // first one of their group on.
    struct Call {
        Located<A>*kernels, *samples;
        int64_t first;
        Range range;
    };

    void locate(const Position& at, int64_t g, const Call& call) const {
        for (int64_t b = 0; b < blocks; b++) {
            scope.locate(at.scope, g, b * kPoints, call.kernels[b]);
            if constexpr (Moving) {
                image.locate(at.image, 0, b * kPoints, call.samples[b]);
            } else {
                place(at.scope, b * kPoints, call.samples[b]);
            }
        }
    }

    // Samples that lie on pixels.
    void place(const typename SampleGrid<A>::Position& at, int64_t p0, Located<A>& to) const {
        const Grid& grid = args.grid;
        const int64_t first_y = at.row * grid.stride[0] + static_cast<int64_t>(grid.start[0]);
        const int64_t first_x = at.column * grid.stride[1] + static_cast<int64_t>(grid.start[1]);
        for (int64_t p = 0; p < least(kPoints, points - p0); p++) {
            const int64_t row = (p0 + p) / grid.kernel[1], column = (p0 + p) % grid.kernel[1];
            const int64_t y = first_y + row * static_cast<int64_t>(grid.step[0]);
            const int64_t x = first_x + column * static_cast<int64_t>(grid.step[1]);
            to.corners[p] = y >= 0 && y < height && x >= 0 && x < width;
            to.pixel[p] = to.corners[p] ? static_cast<Index<A>>(y * width + x) : 0;
        }
    }

    template <typename Work>
    static void for_channels(Range range, Work work) {
        int64_t c = range.begin;
        for (; c + kLanes<A> <= range.end; c += kLanes<A>) work(Whole<A>(), c);
        for (; c < range.end; c++) work(Single<A>(), c);
    }

    // Calls work(kernel's block, sample's block, number in them, number) for all points that add
    // something.
    template <typename Work>
    void for_points(const Call& call, Work work) const {
        for (int64_t b = 0; b < blocks; b++) {
            const Located<A>&kernel = call.kernels[b], &sample = call.samples[b];
            for (int64_t p = 0; p < least(kPoints, points - b * kPoints); p++) {
                if (kernel.corners[p] != 0 && sample.corners[p] != 0) {
                    work(kernel, sample, p, b * kPoints + p);
                }
            }
        }
    }

    // Of the weight, or its gradient.
    template <typename Data>
    Rows<Data> cells(const Tensor& map, const Call& call, const Located<A>& at, int64_t p,
                     Data* outside) const {
        Data* const first = data<Data>(map) + call.first;
        return {at, p, channels, args.weight.size[1], first, outside};
    }

    // Of the image, or its gradient; of a sample that does not move the first one alone.
    template <typename Data>
    Rows<Data> pixels(const Tensor& map, const Call& call, const Position& position,
                      const Located<A>& at, int64_t p, Data* outside) const {
        const int64_t first = position.scope.image * height * width;
        return {at, p, channels, width, data<Data>(map) + first * channels + call.first, outside};
    }

    void sum_points(const Call& call, const Position& at, const T* outside, const A* no_cell,
                    A* sum) const {
        for_points(call, [&](const Located<A>& kernel, const Located<A>& sample, int64_t p,
                             int64_t) {
            const Rows<const A> weight = cells<const A>(args.weight, call, kernel, p, no_cell);
            const Rows<const T> input = pixels<const T>(args.input, call, at, sample, p, outside);
            for_channels(call.range, [&](auto lanes, int64_t c) {
                using Lanes = decltype(lanes);
                typename Lanes::Value x;
                if constexpr (Moving) {
                    x = Interpolated<Lanes, A>(input, c, sample.y[p], sample.x[p]).value;
                } else {
                    x = Lanes::get(input.row[0] + c);
                }
                const Interpolated<Lanes, A> read(weight, c, kernel.y[p], kernel.x[p]);
                add<Lanes>(sum + c, read.value * x);
            });
        });
    }

    // What the gradient of the output adds to those of the input and of the scope; and those of the
    // offsets: y, x and nothing of every point in the scope, then in the image.
    void spread(const Call& call, const Position& at, const A* grad, const T* outside,
                const A* no_cell, A* nowhere, A* sums) const {
        constexpr int64_t lanes = kLanes<A>;
        std::memset(sums, 0, numbers * lanes * sizeof(A));
        const bool of_weight = args.grad_weight.data != nullptr;
        const bool of_input = args.grad_input.data != nullptr;
        for_points(call, [&](const Located<A>& kernel, const Located<A>& sample, int64_t p,
                             int64_t point) {
            const Rows<const A> weight = cells<const A>(args.weight, call, kernel, p, no_cell);
            const Rows<const T> input = pixels<const T>(args.input, call, at, sample, p, outside);
            Rows<A> to_weight, to_input;
            if (of_weight) to_weight = cells<A>(args.grad_weight, call, kernel, p, nowhere);
            if (of_input) to_input = pixels<A>(args.grad_input, call, at, sample, p, nowhere);
            Vec scope_y = {}, scope_x = {}, image_y = {}, image_x = {};
            for_channels(call.range, [&](auto kind, int64_t c) {
                using Lanes = decltype(kind);
                using Value = typename Lanes::Value;
                const Interpolated<Lanes, A> read(weight, c, kernel.y[p], kernel.x[p]);
                const Value g = Lanes::get(grad + c), of_sample = g * read.value;
                Value x;
                if constexpr (Moving) {
                    const Interpolated<Lanes, A> found(input, c, sample.y[p], sample.x[p]);
                    x = found.value;
                    count<Lanes>(image_y, of_sample * found.by_y);
                    count<Lanes>(image_x, of_sample * found.by_x);
                } else {
                    x = Lanes::get(input.row[0] + c);
                }
                const Value of_kernel = g * x;
                count<Lanes>(scope_y, of_kernel * read.by_y);
                count<Lanes>(scope_x, of_kernel * read.by_x);
                if (of_weight) {
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) {
                        add<Lanes>(to_weight.row[i] + c, kernel.weight[i][p] * of_kernel);
                    }
                }
                if (of_input) {
#pragma GCC unroll 4
                    for (int i = 0; i < (Moving ? 4 : 1); i++) {
                        const A weight = Moving ? sample.weight[i][p] : 1;
                        add<Lanes>(to_input.row[i] + c, weight * of_sample);
                    }
                }
            });
            A* const of_scope = sums + 3 * point * lanes;
            store_vector(of_scope, scope_y);
            store_vector(of_scope + lanes, scope_x);
            if constexpr (Moving) {
                A* const of_image = sums + 3 * (points + point) * lanes;
                store_vector(of_image, image_y);
                store_vector(of_image + lanes, image_x);
            }
        });
        for (int64_t i = 0; i < numbers; i += lanes) {
            store_vector(sums + i, sum_lanes(sums + i * lanes));
        }
    }

    // Adds to lanes, or to the first one.
    template <typename Lanes>
    static void count(Vec& sum, typename Lanes::Value value) {
        if constexpr (Lanes::size == 1) {
            sum[0] += value;
        } else {
            sum += value;
        }
    }

    template <typename Lanes>
    static void add(A* to, typename Lanes::Value value) {
        Lanes::put(to, Lanes::get(to) + value);
    }

    const LocalDeformKernel& args;
    const SampleGrid<A> scope, image;
    const int64_t points, blocks, channels, group, height, width, numbers;
};

}  // namespace DCN_ISA
}  // namespace dcn
