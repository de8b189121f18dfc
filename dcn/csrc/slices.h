// How the backward passes divide their work.
#pragma once

#include "types.h"

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

}  // namespace DCN_ISA
}  // namespace dcn
