// Deformable aggregation (DCNv3, arXiv 2211.05778, equation 2; DCNv4, arXiv 2401.06197): sums over the
// samples of a group of channels, which are not mixed. With weights it is the deformable convolution
// in groups of which a vector holds several, such as the depthwise one.
//
// Forward: threads take positions. Backward: see ByChannels.
#pragma once

#include "grid.h"
#include "slices.h"

namespace dcn {
namespace DCN_ISA {

// Of a convolution in groups: the weight, and its gradient or null, [point][channel] if depthwise,
// otherwise [vector][point][channel of the group that is read][lane that is added to]; the bias [C] or
// null. The backward pass adds to the gradient of inputs by the weight, so its lanes are inputs then.
template <typename A>
struct Weights {
    const A* weight;
    const A* bias;
    A* grad_weight;
};

// `Group` channels are summed with weights, or none.
template <typename T, int64_t Group = 0>
class Aggregation {
   public:
    using A = typename Compute<T>::type;

    explicit Aggregation(const DeformAggregation& args, const Weights<A>& weights = {})
        : args(args),
          weights(weights),
          grid(args.grid, args.deltas, args.input.size[2], args.input.size[3]),
          points(grid.points),
          blocks(ceil_div(points, kPoints)),
          channels(args.input.size[1]),
          group(channels / grid.groups),
          width(args.input.size[3]),
          image_pixels(args.input.size[2] * width),
          weight_step(kLanes<A> * (Group > 1 ? points * Group : 1)) {}

    void forward() const {
        const Buffers<Located<A>> located(args.threads, blocks);
        const Buffers<T> outside(1, group);
#pragma omp parallel num_threads(args.threads)
        {
            const int thread = omp_get_thread_num();
            Located<A>* const samples = located[thread];
#pragma omp for schedule(dynamic, kTile)
            for (int64_t q = 0; q < grid.positions; q++) {
                const Position at = grid.position(q);
                for (int64_t g = 0; g < grid.groups; g++) {
                    locate(at, g, samples);
                    const T* input = pixel(args.input, at.image * image_pixels) + g * group;
                    T* output = static_cast<T*>(args.output.data) + q * channels + g * group;
                    sum_group(samples, input, outside[0], g * group, output);
                }
            }
        }
    }

    void backward() const {
        const Buffers<Located<A>> located(args.threads, blocks);
        const Buffers<T> outside(1, group);
        const Buffers<A> nowhere(args.threads, group);
        const ByChannels<A> by_channels{args.threads, args.input.size[0], grid.groups, group,
                                        grid.positions, 3 * points, has_data(args.grad_deltas)};
        // All images add to the gradient of a weight.
        by_channels.run(
            !Weighted, grid,
            [&](int64_t thread, const Position& at, int64_t g, Range range, int64_t q, A* sums) {
                locate(at, g, located[thread]);
                spread(located[thread], at.image * image_pixels, g * group + range.begin,
                       range.size(), q, outside[0], nowhere[thread], sums);
            },
            [&](const Position& at, int64_t g, const A* sums) {
                grid.store(args.grad_deltas, at, g, sums);
            });
    }

   private:
    static constexpr bool Weighted = Group > 0;
    static constexpr int64_t kTile = 16;  // positions that a thread takes at a time
    static constexpr int64_t kPoints = Located<A>::kPoints;

    using Position = typename SampleGrid<A>::Position;
    using Vec = typename Vector<A>::type;

    template <typename Data>
    static Data* at_pixel(const Tensor& image, int64_t index, int64_t channels) {
        return static_cast<Data*>(image.data) + index * channels;
    }
    const T* pixel(const Tensor& image, int64_t index) const {
        return at_pixel<const T>(image, index, channels);
    }

    void locate(const Position& at, int64_t g, Located<A>* to) const {
        for (int64_t b = 0; b < blocks; b++) grid.locate(at, g, b * kPoints, to[b]);
    }

    // Calls work(block, number in it, number) for all points that read something.
    template <typename Work>
    void for_points(const Located<A>* at, Work work) const {
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t count = least(kPoints, points - b * kPoints);
            for (int64_t p = 0; p < count; p++) {
                if (at[b].corners[p] != 0) work(at[b], p, b * kPoints + p);
            }
        }
    }

    // Calls work(rows of `image` around sample p); those outside the map are `outside`.
    template <typename Data, typename Work>
    void with_rows(const Located<A>& at, int64_t p, Data* image, Data* outside, Work work) const {
        Data* const first = image + static_cast<int64_t>(at.pixel[p]) * channels;
        Data* const below = first + width * channels;
        const Index<A> inside = at.corners[p];
        if (inside == 15) {
            work(first, first + channels, below, below + channels);
        } else {
            work(inside & 1 ? first : outside, inside & 2 ? first + channels : outside,
                 inside & 4 ? below : outside, inside & 8 ? below + channels : outside);
        }
    }

    // Where the weights of a point are for the vector of channels that begins with this one.
    int64_t weight_at(int64_t point, int64_t channel) const {
        if (Group <= 1) return point * channels + channel;
        return (channel * points + point * kLanes<A>) * Group;
    }

    // `image` and `to` begin with the group's first channel.
    void sum_group(const Located<A>* at, const T* image, const T* outside, int64_t first,
                   T* to) const {
        constexpr int64_t lanes = kLanes<A>;
        int64_t c = 0;
        for (; c + 4 * lanes <= group; c += 4 * lanes) {
            sum_vectors<4>(at, image + c, outside, first + c, to + c);
        }
        for (; c + 2 * lanes <= group; c += 2 * lanes) {
            sum_vectors<2>(at, image + c, outside, first + c, to + c);
        }
        for (; c + lanes <= group; c += lanes) {
            sum_vectors<1>(at, image + c, outside, first + c, to + c);
        }
        if constexpr (Group <= 1) {
            if (c < group) sum_rest(at, image + c, outside, first + c, group - c, to + c);
        }
    }

    // Fewer channels than a vector has.
    void sum_rest(const Located<A>* at, const T* image, const T* outside, int64_t channel,
                  int64_t size, T* to) const {
        A sum[kLanes<A>] = {};
        if constexpr (Weighted) {
            for (int64_t i = 0; i < size; i++) {
                if (weights.bias != nullptr) sum[i] = weights.bias[channel + i];
            }
        }
        for_points(at, [&](const Located<A>& block, int64_t p, int64_t point) {
            with_rows(block, p, image, outside, [&](auto... rows) {
                const T* const row[4] = {rows...};
                for (int64_t i = 0; i < size; i++) {
                    A sample = 0;
                    for (int j = 0; j < 4; j++) sample += block.weight[j][p] * load(row[j][i]);
                    if constexpr (Weighted) {
                        sample *= weights.weight[point * channels + channel + i];
                    }
                    sum[i] += sample;
                }
            });
        });
        for (int64_t i = 0; i < size; i++) store(to[i], sum[i]);
    }

    // V vectors of channels.
    template <int V>
    void sum_vectors(const Located<A>* at, const T* image, const T* outside, int64_t channel,
                     T* to) const {
        constexpr int64_t lanes = kLanes<A>;
        Vec sum[V] = {};
        if constexpr (Weighted) {
            if (weights.bias != nullptr) {
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    sum[v] = load_vector(weights.bias + channel + v * lanes);
                }
            }
        }
        for_points(at, [&](const Located<A>& block, int64_t p, int64_t point) {
            const A w0 = block.weight[0][p], w1 = block.weight[1][p];
            const A w2 = block.weight[2][p], w3 = block.weight[3][p];
            const int64_t at_weight = weight_at(point, channel);
            with_rows(block, p, image, outside, [&](auto r0, auto r1, auto r2, auto r3) {
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    Vec sample = Weighted ? Vec{} : sum[v];
                    sample += w0 * load_vector(r0 + v * lanes);
                    sample += w1 * load_vector(r1 + v * lanes);
                    sample += w2 * load_vector(r2 + v * lanes);
                    sample += w3 * load_vector(r3 + v * lanes);
                    if constexpr (Weighted) {
                        const A* const weight = weights.weight + at_weight + v * weight_step;
                        sum[v] += sum_products<A, Group>(sample, weight);
                    } else {
                        sum[v] = sample;
                    }
                }
            });
        });
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store_vector(to + v * lanes, sum[v]);
    }

    // `size` channels from `first` on of the position q: adds to the input's gradient, and sets the
    // gradients of y, x and the modulation of all points, three by three.
    void spread(const Located<A>* at, int64_t image, int64_t first, int64_t size, int64_t q,
                const T* outside, A* nowhere, A* sums) const {
        constexpr int64_t lanes = kLanes<A>;
        const T* const input = pixel(args.input, image) + first;
        const T* const grad = pixel(args.output, q) + first;
        A* const to = args.grad_input.data == nullptr
                          ? nullptr
                          : at_pixel<A>(args.grad_input, image, channels) + first;
        std::memset(sums, 0, 3 * points * lanes * sizeof(A));
        int64_t c = 0;
        for (; c + 2 * lanes <= size; c += 2 * lanes) {
            spread_vectors<2>(at, input + c, grad + c, outside, to, c, first, nowhere, sums);
        }
        for (; c + lanes <= size; c += lanes) {
            spread_vectors<1>(at, input + c, grad + c, outside, to, c, first, nowhere, sums);
        }
        if constexpr (Group <= 1) {
            if (c < size) {
                spread_rest(at, input + c, grad + c, size - c, outside, to, c, first, nowhere, sums);
            }
        }
        for (int64_t i = 0; i < 3 * points; i += lanes) {
            store_vector(sums + i, sum_lanes(sums + i * lanes));
        }
    }

    // What a channel of the output's gradient adds to the gradients of y, x and the modulation, by
    // the upper and the lower edge of the square around the sample.
    template <typename Value>
    static void differentiate(const Located<A>& at, int64_t p, Value grad, Value r0, Value r1,
                              Value r2, Value r3, Value& of_y, Value& of_x, Value& of_mask) {
        const A y = at.y[p], x = at.x[p], mask = at.mask[p];
        const Value upper = r0 + x * (r1 - r0), lower = r2 + x * (r3 - r2);
        of_y += mask * grad * (lower - upper);
        of_x += mask * grad * ((r1 - r0) + y * ((r3 - r2) - (r1 - r0)));
        of_mask += grad * (upper + y * (lower - upper));
    }

    // V vectors of channels; without `to` there is no gradient of the input.
    template <int V>
    void spread_vectors(const Located<A>* at, const T* input, const T* grad, const T* outside,
                        A* to, int64_t c, int64_t first, A* nowhere, A* sums) const {
        constexpr int64_t lanes = kLanes<A>;
        Vec of_output[V], g[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) g[v] = of_output[v] = load_vector(grad + v * lanes);
        for_points(at, [&](const Located<A>& block, int64_t p, int64_t point) {
            if constexpr (Weighted) {
                const int64_t at_weight = weight_at(point, first + c);
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) {
                    const A* const weight = weights.weight + at_weight + v * weight_step;
                    g[v] = sum_products<A, Group>(of_output[v], weight);
                }
                if (weights.grad_weight != nullptr) {
                    with_rows(block, p, input, outside, [&](auto... rows) {
                        const T* const row[4] = {rows...};
#pragma GCC unroll 2
                        for (int v = 0; v < V; v++) {
                            Vec sample = {};
#pragma GCC unroll 4
                            for (int i = 0; i < 4; i++) {
                                sample += block.weight[i][p] * load_vector(row[i] + v * lanes);
                            }
                            add_products<A, Group>(
                                sample, of_output[v],
                                weights.grad_weight + at_weight + v * weight_step);
                        }
                    });
                }
            }
            A* const sum = sums + 3 * point * lanes;
            Vec of_y = load_vector(sum), of_x = load_vector(sum + lanes);
            Vec of_mask = load_vector(sum + 2 * lanes);
            with_rows(block, p, input, outside, [&](auto r0, auto r1, auto r2, auto r3) {
#pragma GCC unroll 2
                for (int64_t i = 0; i < V * lanes; i += lanes) {
                    differentiate(block, p, g[i / lanes], load_vector(r0 + i), load_vector(r1 + i),
                                  load_vector(r2 + i), load_vector(r3 + i), of_y, of_x, of_mask);
                }
            });
            store_vector(sum, of_y);
            store_vector(sum + lanes, of_x);
            store_vector(sum + 2 * lanes, of_mask);
            if (to == nullptr) return;
            const A w0 = block.weight[0][p], w1 = block.weight[1][p];
            const A w2 = block.weight[2][p], w3 = block.weight[3][p];
            with_rows(block, p, to + c, nowhere, [&](auto t0, auto t1, auto t2, auto t3) {
#pragma GCC unroll 2
                for (int64_t i = 0; i < V * lanes; i += lanes) {
                    store_vector(t0 + i, load_vector(t0 + i) + w0 * g[i / lanes]);
                    store_vector(t1 + i, load_vector(t1 + i) + w1 * g[i / lanes]);
                    store_vector(t2 + i, load_vector(t2 + i) + w2 * g[i / lanes]);
                    store_vector(t3 + i, load_vector(t3 + i) + w3 * g[i / lanes]);
                }
            });
        });
    }

    // Fewer channels than a vector has.
    void spread_rest(const Located<A>* at, const T* input, const T* grad, int64_t size,
                     const T* outside, A* to, int64_t c, int64_t first, A* nowhere,
                     A* sums) const {
        for_points(at, [&](const Located<A>& block, int64_t p, int64_t point) {
            A* const sum = sums + 3 * point * kLanes<A>;
            A g[kLanes<A>];
            for (int64_t i = 0; i < size; i++) g[i] = load(grad[i]);
            if constexpr (Weighted) {
                const int64_t at_weight = point * channels + first + c;
                with_rows(block, p, input, outside, [&](auto... rows) {
                    const T* const row[4] = {rows...};
                    for (int64_t i = 0; i < size; i++) {
                        A sample = 0;
                        for (int j = 0; j < 4; j++) sample += block.weight[j][p] * load(row[j][i]);
                        if (weights.grad_weight != nullptr) {
                            weights.grad_weight[at_weight + i] += g[i] * sample;
                        }
                        g[i] *= weights.weight[at_weight + i];
                    }
                });
            }
            with_rows(block, p, input, outside, [&](auto r0, auto r1, auto r2, auto r3) {
                for (int64_t i = 0; i < size; i++) {
                    differentiate(block, p, g[i], load(r0[i]), load(r1[i]), load(r2[i]),
                                  load(r3[i]), sum[0], sum[kLanes<A>], sum[2 * kLanes<A>]);
                }
            });
            if (to == nullptr) return;
            with_rows(block, p, to + c, nowhere, [&](auto... rows) {
                A* const row[4] = {rows...};
                for (int64_t i = 0; i < size; i++) {
                    for (int j = 0; j < 4; j++) row[j][i] += block.weight[j][p] * g[i];
                }
            });
        });
    }

    const DeformAggregation& args;
    const Weights<A> weights;
    const SampleGrid<A> grid;
    const int64_t points, blocks, channels, group, width, image_pixels;
    const int64_t weight_step;  // from the weights of a vector of channels to the next one's
};

// A convolution whose groups have as many outputs as inputs, `Group`, of which a vector holds several.
template <typename T, int64_t Group>
class GroupedConvolution {
   public:
    using A = typename Compute<T>::type;

    static bool fits(const DeformConv2d& args) {
        const int64_t channels = args.input.size[1], deform_in = channels / args.deltas.y.size[1];
        const bool countable = args.input.size[2] * args.input.size[3] <= INT32_MAX;
        return args.weight.size[1] == Group && args.output.size[1] == channels &&
               channels > Group && (Group == 1 || deform_in % kLanes<A> == 0) && countable;
    }

    // The output, or its gradient, is dense and channels-last.
    explicit GroupedConvolution(const DeformConv2d& args)
        : args(args),
          sums{{args.dtype, args.threads}, args.grid, args.deltas, args.input, args.output,
               args.grad_deltas, args.grad_input},
          channels(args.input.size[1]),
          points(args.deltas.y.size[2]),
          weight(1, points * Group * channels) {}

    void forward() const {
        const A* const from = static_cast<const A*>(args.weight.data);
        for_weights([&](int64_t i, int64_t, int64_t by_output) { weight[0][by_output] = from[i]; });
        const A* const bias = static_cast<const A*>(args.bias.data);
        Aggregation<T, Group>(sums, {weight[0], bias, nullptr}).forward();
    }

    void backward() const {
        const A* const from = static_cast<const A*>(args.weight.data);
        A* const to = static_cast<A*>(args.grad_weight.data);
        const Buffers<A> grad(1, points * Group * channels);
        for_weights([&](int64_t i, int64_t by_input, int64_t) { weight[0][by_input] = from[i]; });
        Aggregation<T, Group>(sums, {weight[0], nullptr, to == nullptr ? to : grad[0]}).backward();
        if (to == nullptr) return;
        for_weights([&](int64_t i, int64_t, int64_t by_output) { to[i] = grad[0][by_output]; });
    }

   private:
    // Calls work(where it is, where it is in Weights with inputs as lanes, with outputs as lanes).
    template <typename Work>
    void for_weights(Work work) const {
        int64_t i = 0;
        for (int64_t c = 0; c < channels; c++) {
            const int64_t first = c / Group * Group;
            for (int64_t p = 0; p < points; p++) {
                for (int64_t k = 0; k < Group; k++) {
                    work(i++, place(p, c - first, first + k), place(p, k, c));
                }
            }
        }
    }

    int64_t place(int64_t point, int64_t k, int64_t channel) const {
        constexpr int64_t lanes = kLanes<A>;
        if (Group == 1) return point * channels + channel;
        return ((channel / lanes * points + point) * Group + k) * lanes + channel % lanes;
    }

    const DeformConv2d& args;
    const DeformAggregation sums;
    const int64_t channels, points;
    const Buffers<A> weight;
};

}  // namespace DCN_ISA
}  // namespace dcn
