// How the backward passes divide their work.
#pragma once

#include "memory.h"
#include "vectors.h"

namespace dcn {
namespace DCN_ISA {

// Channels [begin, end).
struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
    Range cut(Range other) const { return {most(begin, other.begin), least(end, other.end)}; }
};

// In the backward passes a thread adds to a slice of the input's channels that is its own, so that
// sums are taken in the same order whatever the threads do. A slice has a vector's channels at the
// least: more threads than that have nothing to do.
template <typename A>
struct Slices {
    Slices(int64_t channels, int64_t threads) : channels(channels) {
        constexpr int64_t kMost = 128;  // with more, what a slice works on leaves the cache
        const int64_t wanted = threads * ceil_div(channels, threads * kMost);
        size = round_up(ceil_div(channels, wanted), DCN_VECTOR_BYTES / sizeof(A));
        count = ceil_div(channels, size);
    }
    Range operator[](int64_t i) const { return {i * size, least((i + 1) * size, channels)}; }

    int64_t channels, size, count;
};

// The backward pass of an operator that does not mix channels: threads take a group of an image, or a
// slice of its channels in all images, whose gradient is theirs alone.
template <typename A>
struct ByChannels {
    int64_t threads, images, groups, group;  // a group has so many channels
    int64_t positions;                       // in all images
    int64_t numbers;                         // sums over the channels of a group, at a position
    bool summed;                             // whether these are wanted

    // Calls spread(thread, position, g, channels of the group, q, sums), which sets the sums of these
    // channels at position q, and store(position, g, sums) with those of all channels. `sums` has
    // space for a vector per number; its first elements are the sums. With `per_image`, tasks may be
    // of one image.
    template <typename Grid, typename Spread, typename Store>
    void run(bool per_image, const Grid& grid, Spread spread, Store store) const {
        if (positions == 0) return;
        const int64_t lanes = kLanes<A>;
        const int64_t batches = per_image && images * groups >= threads ? images : 1;
        const int64_t count = positions / batches;  // of a task
        // Slices of a group where there are not groups enough for all threads.
        const int64_t wanted = ceil_div(threads, batches * groups);
        const int64_t slice = least(group, round_up(ceil_div(group, wanted), lanes));
        const int64_t slices = ceil_div(group, slice), tasks = batches * groups * slices;
        // What slices have of the sums at some positions, until all are there.
        const bool partial = summed && slices > 1;
        const int64_t budget = threads * kPartials / (tasks * numbers);
        const int64_t chunk = partial ? least(count, most(budget, 1)) : count;
        const Buffers<A> buffers(threads, round_up(numbers, lanes) * lanes);
        const Buffers<A> partials(partial ? tasks : 0, chunk * numbers);
#pragma omp parallel num_threads(threads)
        for (int64_t begin = 0; begin < count; begin += chunk) {
            const int64_t end = least(begin + chunk, count);
            const int thread = omp_get_thread_num();
            A* const sums = buffers[thread];
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < tasks; i++) {
                const int64_t g = i / slices % groups, task = i / slices / groups * count;
                const Range range{i % slices * slice, least((i % slices + 1) * slice, group)};
                auto at = grid.position(task + begin);
                for (int64_t q = begin; q < end; q++, grid.advance(at)) {
                    spread(thread, at, g, range, task + q, sums);
                    if (partial) {
                        std::memcpy(partials[i] + (q - begin) * numbers, sums,
                                    numbers * sizeof(A));
                    } else if (summed) {
                        store(at, g, sums);
                    }
                }
            }
            if (partial) {  // of one batch
#pragma omp for
                for (int64_t q = begin; q < end; q++) {
                    const auto at = grid.position(q);
                    for (int64_t g = 0; g < groups; g++) {
                        std::memset(sums, 0, numbers * sizeof(A));
                        for (int64_t s = g * slices; s < (g + 1) * slices; s++) {
                            const A* const part = partials[s] + (q - begin) * numbers;
                            for (int64_t j = 0; j < numbers; j++) sums[j] += part[j];
                        }
                        store(at, g, sums);
                    }
                }
            }
        }
    }

    static constexpr int64_t kPartials = 512 * 1024;
};

}  // namespace DCN_ISA
}  // namespace dcn
