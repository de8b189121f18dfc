// Vectors of DCN_VECTOR_BYTES.
#pragma once

#include "types.h"

namespace dcn {
namespace DCN_ISA {

template <typename A>
constexpr int64_t kLanes = DCN_VECTOR_BYTES / sizeof(A);

// Anywhere in memory.
template <typename A>
struct Vector {
    typedef A type __attribute__((vector_size(DCN_VECTOR_BYTES), aligned(alignof(A)), may_alias));
};

template <typename A>
inline typename Vector<A>::type load_vector(const A* from) {
    return *reinterpret_cast<const typename Vector<A>::type*>(from);
}
inline Vector<float>::type load_vector(const BFloat16* from) {
    typedef uint16_t Bits __attribute__((vector_size(DCN_VECTOR_BYTES / 2), aligned(2), may_alias));
    typedef uint32_t Wide __attribute__((vector_size(DCN_VECTOR_BYTES)));
    const Bits bits = *reinterpret_cast<const Bits*>(from);
    const Wide wide = __builtin_convertvector(bits, Wide) << 16;
    return reinterpret_cast<const Vector<float>::type&>(wide);
}

template <typename A>
inline void store_vector(A* to, typename Vector<A>::type value) {
    *reinterpret_cast<typename Vector<A>::type*>(to) = value;
}
inline void store_vector(BFloat16* to, Vector<float>::type value) {
    for (int64_t i = 0; i < kLanes<float>; i++) store(to[i], value[i]);
}

// Whole numbers of the same size.
template <typename A>
struct IndexOf {
    using type = int64_t;
};
template <>
struct IndexOf<float> {
    using type = int32_t;
};
template <typename A>
using Index = typename IndexOf<A>::type;

// Lanes of two vectors, those of the second from kLanes on. What is in memory the compiler takes from
// there, instead of putting it together.
template <typename A>
struct Pick {
    template <typename Choose>
    constexpr explicit Pick(Choose choose) : lane() {
        for (int64_t i = 0; i < kLanes<A>; i++) lane[i] = static_cast<Index<A>>(choose(i));
    }
    typename Vector<A>::type operator()(typename Vector<A>::type a,
                                        typename Vector<A>::type b) const {
        return __builtin_shuffle(a, b, load_vector(lane));
    }
    Index<A> lane[kLanes<A>];
};

// The even and the odd lanes of two vectors.
template <typename A>
constexpr Pick<A> kEven([](int64_t i) { return 2 * i; });
template <typename A>
constexpr Pick<A> kOdd([](int64_t i) { return 2 * i + 1; });

// Lane i is i of the first or the second vector, as i / d is even or odd; the other one is the lane
// that is d away.
template <typename A, int64_t d>
constexpr Pick<A> kOwn([](int64_t i) { return i & d ? kLanes<A> + i : i; });
template <typename A, int64_t d>
constexpr Pick<A> kOther([](int64_t i) { return i & d ? kLanes<A> + i - d : i + d; });

// The sums of the lanes of vectors[i], vectors[i + 1], ..., kLanes of them: lane i is that of vector
// i. Together they take a third of the operations that one after the other would.
template <typename A, int64_t d = kLanes<A> / 2>
inline typename Vector<A>::type sum_lanes(const A* vectors, int64_t first = 0) {
    if constexpr (d == 0) {
        return load_vector(vectors + first * kLanes<A>);
    } else {
        const auto a = sum_lanes<A, d / 2>(vectors, first);
        const auto b = sum_lanes<A, d / 2>(vectors, first + d);
        return kOwn<A, d>(a, b) + kOther<A, d>(a, b);
    }
}

// The sum of a vector's lanes.
template <typename A, int64_t d = kLanes<A> / 2>
inline A sum_of(typename Vector<A>::type vector) {
    if constexpr (d == 0) {
        return vector[0];
    } else {
        return sum_of<A, d / 2>(vector + kOther<A, d>(vector, vector));
    }
}

// Lane i is lane k of its n.
template <typename A, int64_t n, int64_t k>
constexpr Pick<A> kSame([](int64_t i) { return i / n * n + k; });

// Lane i: sum_k values[k-th lane of its n] · weight[k][i].
template <typename A, int64_t n, int64_t k = 0>
inline typename Vector<A>::type sum_products(typename Vector<A>::type values, const A* weight) {
    if constexpr (n == 1) {
        return values * load_vector(weight);
    } else {
        const auto product = kSame<A, n, k>(values, values) * load_vector(weight + k * kLanes<A>);
        if constexpr (k + 1 == n) {
            return product;
        } else {
            return product + sum_products<A, n, k + 1>(values, weight);
        }
    }
}

// to[k][i] += values[k-th lane of its n] · grad[i]
template <typename A, int64_t n, int64_t k = 0>
inline void add_products(typename Vector<A>::type values, typename Vector<A>::type grad, A* to) {
    const auto value = n == 1 ? values : kSame<A, n, k>(values, values);
    store_vector(to, load_vector(to) + value * grad);
    if constexpr (k + 1 < n) add_products<A, n, k + 1>(values, grad, to + kLanes<A>);
}

}  // namespace DCN_ISA
}  // namespace dcn
