// The functions that dcn/native.py calls. Each picks the kernels of the best instruction set there is.
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

enum Outcome : int { kDone = 0, kNoMemory = 1, kUnknownType = 2 };

template <typename Arguments>
int run(void (*kernel)(const Arguments&), const Arguments* args) {
    if (args->dtype < kFloat32 || args->dtype > kBFloat16) return kUnknownType;
    try {
        kernel(*args);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return kDone;
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

// dcn_deform_conv2d_forward(arguments) and so on, and how large the arguments are.
#define DCN_FUNCTION(name, Arguments)                       \
    int dcn_##name(const dcn::Arguments* args) {            \
        return dcn::run(dcn::chosen.kernels->name, args);   \
    }                                                       \
    int64_t dcn_##name##_size() { return sizeof(dcn::Arguments); }
DCN_KERNELS(DCN_FUNCTION)
#pragma GCC visibility pop
}
