// The functions that dcn/cpu.py calls. Each picks the kernels of the best instruction set there is.
#include <new>

#include "arguments.h"

namespace dcn {
namespace baseline {
extern const Kernels kernels;
}
#ifdef __x86_64__
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

struct Choice {
    const char* name;
    const Kernels* kernels;
};

// The best of at most `most_bits` wide vectors.
Choice choose([[maybe_unused]] int64_t most_bits) {
#ifdef __x86_64__
    if (most_bits >= 512 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        return {"AVX-512", &avx512::kernels};
    }
    if (most_bits >= 256 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return {"AVX2", &avx2::kernels};
    }
    return {"SSE2", &baseline::kernels};
#else
    return {"baseline", &baseline::kernels};
#endif
}

Choice chosen = choose(512);

// 0, or 1 where memory ran out.
template <typename Arguments>
int run(void (*kernel)(const Arguments&), const Arguments* args) {
    try {
        kernel(*args);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace
}  // namespace dcn

extern "C" {
#pragma GCC visibility push(default)

// Of the sources this was built from: see setup.py.
const char* dcn_sources() { return DCN_SOURCES; }

// Name of the instruction set in use.
const char* dcn_capability() { return dcn::chosen.name; }

// For tests and measurements: vectors of at most so many bits.
void dcn_limit_vectors(int64_t bits) { dcn::chosen = dcn::choose(bits); }

int dcn_deform_conv2d_forward(const dcn::DeformConv2d* args) {
    return dcn::run(dcn::chosen.kernels->deform_conv2d_forward, args);
}

int dcn_deform_conv2d_backward(const dcn::DeformConv2d* args) {
    return dcn::run(dcn::chosen.kernels->deform_conv2d_backward, args);
}

int dcn_deform_roi_pool_forward(const dcn::DeformRoIPool* args) {
    return dcn::run(dcn::chosen.kernels->deform_roi_pool_forward, args);
}

int dcn_deform_roi_pool_backward(const dcn::DeformRoIPool* args) {
    return dcn::run(dcn::chosen.kernels->deform_roi_pool_backward, args);
}
#pragma GCC visibility pop
}
