// Types, buffers and the division of work that all kernels share.
//
// Every header from here on is compiled once for each instruction set, in a namespace of its own
// (DCN_ISA), with vectors of DCN_VECTOR_BYTES. Nothing of the standard library that is more than a
// declaration may be used in them: the linker keeps one copy of an inline function, and if that
// were the AVX-512 one, a machine without it would crash.
#pragma once

#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "arguments.h"

namespace dcn {
namespace DCN_ISA {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Elements between the rows of a buffer: without them, rows would share a few sets of the cache.
constexpr int64_t kPad = 16;

struct BFloat16 {
    uint16_t bits;
};

// Storage type to compute type and back.
inline float load(float value) { return value; }
inline double load(double value) { return value; }
inline float load(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}

inline void store(float& to, float value) { to = value; }
inline void store(double& to, double value) { to = value; }
inline void store(BFloat16& to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest even
    to.bits = static_cast<uint16_t>(value == value ? rounded : (bits >> 16) | 0x40);
}

template <typename T>
struct Compute {
    using type = T;
};
template <>
struct Compute<BFloat16> {
    using type = float;
};

// `count` zeroed arrays of `size` elements each, one a thread. Each is an allocation of its own, so
// that a sanitizer sees where one ends.
template <typename A>
class Buffers {
   public:
    Buffers(int64_t count, int64_t size) : count_(count) {
        const size_t bytes = round_up(most(size, 1) * sizeof(A), kAlignment);
        data_ = static_cast<A**>(std::calloc(most(count, 1), sizeof(A*)));
        for (int64_t i = 0; data_ != nullptr && i < count; i++) {
            data_[i] = static_cast<A*>(std::aligned_alloc(kAlignment, bytes));
            if (data_[i] == nullptr) {
                release();
                break;
            }
            std::memset(data_[i], 0, bytes);
        }
        if (data_ == nullptr) throw std::bad_alloc();
    }
    ~Buffers() { release(); }
    Buffers(const Buffers&) = delete;
    Buffers& operator=(const Buffers&) = delete;

    A* operator[](int64_t i) const { return data_[i]; }

   private:
    static constexpr int64_t kAlignment = 64;

    void release() {
        for (int64_t i = 0; data_ != nullptr && i < count_; i++) std::free(data_[i]);
        std::free(data_);
        data_ = nullptr;
    }

    int64_t count_;
    A** data_;
};

// Rows of n channels to and from images of any layout: row m starts at image[m], its channels are
// `stride` apart. Where they are not neighbours, rows often are, and become the inner loop.
template <typename T, typename A>
void load_rows(int64_t rows, int64_t n, T* const* image, int64_t stride, A* to, int64_t to_row) {
    if (stride == 1) {
        for (int64_t m = 0; m < rows; m++) {
            for (int64_t c = 0; c < n; c++) to[m * to_row + c] = load(image[m][c]);
        }
    } else {
        for (int64_t c = 0; c < n; c++) {
            for (int64_t m = 0; m < rows; m++) to[m * to_row + c] = load(image[m][c * stride]);
        }
    }
}

template <typename T, typename A>
void store_rows(int64_t rows, int64_t n, const A* from, int64_t from_row, T* const* image,
                int64_t stride) {
    if (stride == 1) {
        for (int64_t m = 0; m < rows; m++) {
            for (int64_t c = 0; c < n; c++) store(image[m][c], from[m * from_row + c]);
        }
    } else {
        for (int64_t c = 0; c < n; c++) {
            for (int64_t m = 0; m < rows; m++) store(image[m][c * stride], from[m * from_row + c]);
        }
    }
}

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
