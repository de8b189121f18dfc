// Buffers of the threads, and rows of channels to and from images of any layout.
#pragma once

#include <omp.h>

#include <cstdlib>
#include <new>

#include "types.h"

namespace dcn {
namespace DCN_ISA {

// Elements between the rows of a buffer: without them, rows would share a few sets of the cache.
constexpr int64_t kPad = 16;

template <typename Data>
inline Data* data(const Tensor& tensor) {
    return static_cast<Data*>(tensor.data);
}

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

}  // namespace DCN_ISA
}  // namespace dcn
