// Matrix products of small tiles, which stay in the cache.
#pragma once

#include "vectors.h"

namespace dcn {
namespace DCN_ISA {

// Rows of a tile of V vectors: its product takes as many vectors of registers for its sums, V for B
// and one for A. One vector needs more rows, or a sum would wait for the one before.
#if DCN_VECTOR_BYTES == 64 || defined(__aarch64__)
template <int V>
constexpr int kRows = V == 1 ? 16 : 12;
#elif DCN_VECTOR_BYTES == 32
template <int V>
constexpr int kRows = V == 1 ? 8 : 6;
#else
template <int V>
constexpr int kRows = V == 1 ? 8 : 4;
#endif

// A panel of B: `width` columns, so one or two vectors.
template <typename A>
int64_t panel_width(int64_t columns) {
    return columns <= kLanes<A> ? kLanes<A> : 2 * kLanes<A>;
}

// The sum over `points` and `depth` of a kRows<V> × V·kLanes tile:
//   C[i][j] (+)= sum_p sum_k A[p][i][k] B[p·depth + k][j], or A[p][k][i] where `Transposed`.
template <typename A, int V, bool Transposed>
void multiply_tile(int64_t points, int64_t depth, const A* a, int64_t a_row, int64_t a_point,
                   const A* b, int64_t b_row, bool accumulate, A* c, int64_t c_row) {
    using Vec = typename Vector<A>::type;
    Vec sum[kRows<V>][V];
#pragma GCC unroll 16
    for (int i = 0; i < kRows<V>; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < V; j++) {
            sum[i][j] = Vec{};
        }
    }
    for (int64_t p = 0; p < points; p++, a += a_point) {
        for (int64_t k = 0; k < depth; k++, b += b_row) {
            Vec row[V];
#pragma GCC unroll 2
            for (int j = 0; j < V; j++) {
                row[j] = *reinterpret_cast<const Vec*>(b + j * kLanes<A>);
            }
#pragma GCC unroll 16
            for (int i = 0; i < kRows<V>; i++) {
                const A value = Transposed ? a[k * a_row + i] : a[i * a_row + k];
#pragma GCC unroll 2
                for (int j = 0; j < V; j++) {
                    sum[i][j] += value * row[j];
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows<V>; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < V; j++) {
            Vec* to = reinterpret_cast<Vec*>(c + i * c_row + j * kLanes<A>);
            *to = accumulate ? *to + sum[i][j] : sum[i][j];
        }
    }
}

// C[rows][V vectors] (+)= A B. A and C need room for kRows<V> more rows.
template <typename A, int V>
void multiply_panel(int64_t rows, int64_t points, int64_t depth, const A* a, int64_t a_row,
                    int64_t a_point, const A* b, bool accumulate, A* c, int64_t c_row) {
    for (int64_t i = 0; i < rows; i += kRows<V>) {
        multiply_tile<A, V, false>(points, depth, a + i * a_row, a_row, a_point, b, V * kLanes<A>,
                                   accumulate, c + i * c_row, c_row);
    }
}
// The same for one panel of B.
template <typename A>
void multiply_panel(int64_t rows, int64_t width, int64_t points, int64_t depth, const A* a,
                    int64_t a_row, int64_t a_point, const A* b, bool accumulate, A* c,
                    int64_t c_row) {
    const auto multiply = width == kLanes<A> ? multiply_panel<A, 1> : multiply_panel<A, 2>;
    multiply(rows, points, depth, a, a_row, a_point, b, accumulate, c, c_row);
}

// C[rows][columns] += Aᵀ B, A [depth][rows], B [depth][columns]; `columns` are whole panels of V
// vectors. A may be read up to kRows<V> elements beyond a row.
template <typename A, int V>
void multiply_transposed(int64_t rows, int64_t columns, int64_t depth, const A* a, int64_t a_row,
                         const A* b, int64_t b_row, A* c, int64_t c_row) {
    constexpr int64_t width = V * kLanes<A>;
    A spare[kRows<V> * width];
    for (int64_t j = 0; j < columns; j += width) {
        for (int64_t i = 0; i < rows; i += kRows<V>) {
            const bool whole = i + kRows<V> <= rows;
            A* to = whole ? c + i * c_row + j : spare;
            multiply_tile<A, V, true>(1, depth, a + i, a_row, 0, b + j, b_row, whole, to,
                                      whole ? c_row : width);
            if (whole) continue;
            for (int64_t r = 0; r < rows - i; r++) {
                for (int64_t l = 0; l < width; l++) {
                    c[(i + r) * c_row + j + l] += spare[r * width + l];
                }
            }
        }
    }
}
template <typename A>
void multiply_transposed(int64_t rows, int64_t columns, int64_t width, int64_t depth, const A* a,
                         int64_t a_row, const A* b, int64_t b_row, A* c, int64_t c_row) {
    const auto multiply =
        width == kLanes<A> ? multiply_transposed<A, 1> : multiply_transposed<A, 2>;
    multiply(rows, columns, depth, a, a_row, b, b_row, c, c_row);
}

// One panel [depth][width] of B, B(k, j) = source[k·k_stride + j·j_stride]; zeros from `columns` on.
template <typename A>
void pack_panel(int64_t depth, int64_t columns, int64_t width, const A* source, int64_t k_stride,
                int64_t j_stride, A* panel) {
    for (int64_t k0 = 0; k0 < depth; k0 += 16) {  // what is read and written stays in the cache
        const int64_t k1 = least(k0 + 16, depth);
        for (int64_t j = 0; j < width; j++) {
            for (int64_t k = k0; k < k1; k++) {
                panel[k * width + j] = j < columns ? source[k * k_stride + j * j_stride] : A(0);
            }
        }
    }
}

}  // namespace DCN_ISA
}  // namespace dcn
