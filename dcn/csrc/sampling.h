// Bilinear samples as weighted sums of four rows of channels.
#pragma once

#include "memory.h"
#include "vectors.h"

namespace dcn {
namespace DCN_ISA {

// to[c] (+)= sum_i weight[i] · row[i][c]
template <bool Add, typename T, typename A>
inline void gather(int64_t n, const T* const row[4], const A weight[4], A* to) {
    const T *r0 = row[0], *r1 = row[1], *r2 = row[2], *r3 = row[3];
    const A w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
        const A sum = w0 * load(r0[c]) + w1 * load(r1[c]) + w2 * load(r2[c]) + w3 * load(r3[c]);
        to[c] = Add ? to[c] + sum : sum;
    }
}

// to[i][c] += weight[i] · grad[c]; no two rows overlap, but for one that is never read.
template <typename A>
inline void scatter(int64_t n, const A* grad, const A weight[4], A* const to[4]) {
    A *t0 = to[0], *t1 = to[1], *t2 = to[2], *t3 = to[3];
    const A w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
        const A g = grad[c];
        t0[c] += w0 * g;
        t1[c] += w1 * g;
        t2[c] += w2 * g;
        t3[c] += w3 * g;
    }
}

// result[i] = sum_c grad[c] · row[i][c]
template <typename T, typename A>
inline void dots(int64_t n, const A* grad, const T* const row[4], A result[4]) {
    const T *r0 = row[0], *r1 = row[1], *r2 = row[2], *r3 = row[3];
    A d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
    for (int64_t c = 0; c < n; c++) {
        const A g = grad[c];
        d0 += g * load(r0[c]);
        d1 += g * load(r1[c]);
        d2 += g * load(r2[c]);
        d3 += g * load(r3[c]);
    }
    result[0] = d0, result[1] = d1, result[2] = d2, result[3] = d3;
}

// Of one sample all three, which loads everything once: to[i][c] += weight[i] · grad[c],
// dot[i] = sum_c grad[c] · row[i][c], and the sample takes the place of its gradient.
template <typename T, typename A>
inline void spread(int64_t n, const T* const row[4], const A weight[4], A* grad, A* const to[4],
                   A dot[4]) {
    using Vec = typename Vector<A>::type;
    const T *r0 = row[0], *r1 = row[1], *r2 = row[2], *r3 = row[3];
    A *t0 = to[0], *t1 = to[1], *t2 = to[2], *t3 = to[3];
    const A w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
    Vec d0 = {}, d1 = {}, d2 = {}, d3 = {};
    int64_t c = 0;
    for (; c + kLanes<A> <= n; c += kLanes<A>) {
        const Vec g = load_vector(grad + c);
        const Vec v0 = load_vector(r0 + c), v1 = load_vector(r1 + c);
        const Vec v2 = load_vector(r2 + c), v3 = load_vector(r3 + c);
        store_vector(t0 + c, load_vector(t0 + c) + w0 * g);
        store_vector(t1 + c, load_vector(t1 + c) + w1 * g);
        store_vector(t2 + c, load_vector(t2 + c) + w2 * g);
        store_vector(t3 + c, load_vector(t3 + c) + w3 * g);
        d0 += g * v0, d1 += g * v1, d2 += g * v2, d3 += g * v3;
        store_vector(grad + c, w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3);
    }
    dot[0] = sum_of<A>(d0), dot[1] = sum_of<A>(d1), dot[2] = sum_of<A>(d2), dot[3] = sum_of<A>(d3);
    for (; c < n; c++) {
        const A g = grad[c];
        grad[c] = 0;
        for (int i = 0; i < 4; i++) {
            const A value = load(row[i][c]);
            to[i][c] += weight[i] * g;
            dot[i] += g * value;
            grad[c] += weight[i] * value;
        }
    }
}

template <typename A>
inline int64_t floor(A value) {
    const int64_t whole = static_cast<int64_t>(value);
    return whole - (static_cast<A>(whole) > value);
}

// Four neighbouring pixels (low, low), (low, high), (high, low), (high, high) of a position.
template <typename A>
struct Corners {
    // False where all four lie outside, or the position is not finite.
    bool locate(A y, A x, int64_t h, int64_t w) {
        if (!(y >= -1 && y < static_cast<A>(h) && x >= -1 && x < static_cast<A>(w))) return false;
        const int64_t low_y = floor(y), low_x = floor(x);
        // Also from above, as h and w may be beyond what A holds exactly.
        const bool top = low_y >= 0 && low_y < h, bottom = low_y + 1 < h;
        const bool left = low_x >= 0 && low_x < w, right = low_x + 1 < w;
        const int64_t p = low_y * w + low_x;
        pixel[0] = top && left ? p : -1;
        pixel[1] = top && right ? p + 1 : -1;
        pixel[2] = bottom && left ? p + w : -1;
        pixel[3] = bottom && right ? p + w + 1 : -1;
        part_y = y - static_cast<A>(low_y), part_x = x - static_cast<A>(low_x);
        weight[0] = (1 - part_y) * (1 - part_x);
        weight[1] = (1 - part_y) * part_x;
        weight[2] = part_y * (1 - part_x);
        weight[3] = part_y * part_x;
        return true;
    }

    // Of y, x and the modulation of a sample, by the products of its gradient with the corners.
    void gradients(const A dot[4], A modulation, A grad[3]) const {
        grad[0] =
            modulation * ((dot[2] - dot[0]) * (1 - part_x) + (dot[3] - dot[1]) * part_x);
        grad[1] =
            modulation * ((dot[1] - dot[0]) * (1 - part_y) + (dot[3] - dot[2]) * part_y);
        grad[2] = weight[0] * dot[0] + weight[1] * dot[1] + weight[2] * dot[2] +
                  weight[3] * dot[3];
    }

    int64_t pixel[4];  // -1 outside
    A weight[4];
    A part_y, part_x;  // of the high neighbours
};

}  // namespace DCN_ISA
}  // namespace dcn
