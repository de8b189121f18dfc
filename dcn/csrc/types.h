// Storage and compute types, and whole numbers.
//
// Every header from here on is compiled once for each instruction set, in a namespace of its own
// (DCN_ISA), with vectors of DCN_VECTOR_BYTES. Nothing of the standard library that is more than a
// declaration may be used in them: the linker keeps one copy of an inline function, and if that
// were the AVX-512 one, a machine without it would crash.
#pragma once

#include <cstdint>
#include <cstring>

#include "arguments.h"

namespace dcn {
namespace DCN_ISA {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

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

}  // namespace DCN_ISA
}  // namespace dcn
