// Matrix products of small tiles, which stay in the cache.
#pragma once

#include "vectors.h"

namespace dcn {
namespace DCN_ISA {

// A tile's product takes kRows × 2 vectors of registers for its sums, two for B and one for A.
#if DCN_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRows = 12;
#elif DCN_VECTOR_BYTES == 32
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif

// A panel of B: `width` columns, so one or two vectors.
template <typename A>
int64_t panel_width(int64_t columns) {
    return columns <= kLanes<A> ? kLanes<A> : 2 * kLanes<A>;
}

// The sum over `points` and `depth` of a kRows × V·kLanes tile:
//   C[i][j] (+)= sum_p sum_k A[p][i][k] B[p·depth + k][j], or A[p][k][i] where `Transposed`.
template <typename A, int V, bool Transposed>
void multiply_tile(int64_t points, int64_t depth, const A* a, int64_t a_row, int64_t a_point,
                   const A* b, int64_t b_row, bool accumulate, A* c, int64_t c_row) {
    using Vec = typename Vector<A>::type;
    Vec sum[kRows][V];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
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
            for (int i = 0; i < kRows; i++) {
                const A value = Transposed ? a[k * a_row + i] : a[i * a_row + k];
#pragma GCC unroll 2
                for (int j = 0; j < V; j++) {
                    sum[i][j] += value * row[j];
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < V; j++) {
            Vec* to = reinterpret_cast<Vec*>(c + i * c_row + j * kLanes<A>);
            *to = accumulate ? *to + sum[i][j] : sum[i][j];
        }
    }
}

// C[rows][width] (+)= A B for one panel of B. A and C need room for kRows more rows.
template <typename A>
void multiply_panel(int64_t rows, int64_t width, int64_t points, int64_t depth, const A* a,
                    int64_t a_row, int64_t a_point, const A* b, bool accumulate, A* c,
                    int64_t c_row) {
    for (int64_t i = 0; i < rows; i += kRows) {
        if (width == kLanes<A>) {
            multiply_tile<A, 1, false>(points, depth, a + i * a_row, a_row, a_point, b, width,
                                       accumulate, c + i * c_row, c_row);
        } else {
            multiply_tile<A, 2, false>(points, depth, a + i * a_row, a_row, a_point, b, width,
                                       accumulate, c + i * c_row, c_row);
        }
    }
}

// C[rows][columns] += Aᵀ B, A [depth][rows], B [depth][columns]; `columns` are whole panels.
// A may be read up to kRows elements beyond a row.
template <typename A>
void multiply_transposed(int64_t rows, int64_t columns, int64_t width, int64_t depth, const A* a,
                         int64_t a_row, const A* b, int64_t b_row, A* c, int64_t c_row) {
    A spare[kRows * 2 * kLanes<A>];
    for (int64_t j = 0; j < columns; j += width) {
        for (int64_t i = 0; i < rows; i += kRows) {
            const bool whole = i + kRows <= rows;
            A* to = whole ? c + i * c_row + j : spare;
            const int64_t to_row = whole ? c_row : width;
            if (width == kLanes<A>) {
                multiply_tile<A, 1, true>(1, depth, a + i, a_row, 0, b + j, b_row, whole, to,
                                          to_row);
            } else {
                multiply_tile<A, 2, true>(1, depth, a + i, a_row, 0, b + j, b_row, whole, to,
                                          to_row);
            }
            if (whole) continue;
            for (int64_t r = 0; r < rows - i; r++) {
                for (int64_t l = 0; l < width; l++) {
                    c[(i + r) * c_row + j + l] += spare[r * width + l];
                }
            }
        }
    }
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
