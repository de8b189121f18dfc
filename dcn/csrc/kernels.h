// The kernels of one instruction set; included once for each, with DCN_ISA and DCN_VECTOR_BYTES.
#pragma once

#include "aggregation.h"
#include "convolution.h"
#include "deform_kernel.h"
#include "roi_pooling.h"

namespace dcn {
namespace DCN_ISA {

// Calls work with a value of the storage type; entry.cpp knows that it is one of these.
template <typename Work>
void with_type(int64_t dtype, Work work) {
    if (dtype == kFloat32) work(float());
    if (dtype == kFloat64) work(double());
    if (dtype == kBFloat16) work(BFloat16());
}

// Calls work with the convolution that fits.
template <typename T, int64_t Group = 1, typename Work>
void with_convolution(const DeformConv2d& args, Work work) {
    if constexpr (Group >= kLanes<typename Compute<T>::type>) {
        work(Convolution<T>(args));
    } else if (GroupedConvolution<T, Group>::fits(args)) {
        work(GroupedConvolution<T, Group>(args));
    } else {
        with_convolution<T, 2 * Group>(args, work);
    }
}

void deform_conv2d_forward(const DeformConv2d& args) {
    with_type(args.dtype, [&](auto value) {
        using T = decltype(value);
        with_convolution<T>(args, [](const auto& convolution) { convolution.forward(); });
    });
}

void deform_conv2d_backward(const DeformConv2d& args) {
    with_type(args.dtype, [&](auto value) {
        using T = decltype(value);
        with_convolution<T>(args, [](const auto& convolution) { convolution.backward(); });
    });
}

void deform_aggregation_forward(const DeformAggregation& args) {
    with_type(args.dtype, [&](auto value) { Aggregation<decltype(value)>(args).forward(); });
}

void deform_aggregation_backward(const DeformAggregation& args) {
    with_type(args.dtype, [&](auto value) { Aggregation<decltype(value)>(args).backward(); });
}

void local_deform_kernel_forward(const LocalDeformKernel& args) {
    with_type(args.dtype, [&](auto value) {
        using T = decltype(value);
        if (has_data(args.deltas)) return DeformKernel<T, true>(args).forward();
        DeformKernel<T, false>(args).forward();
    });
}

void local_deform_kernel_backward(const LocalDeformKernel& args) {
    with_type(args.dtype, [&](auto value) {
        using T = decltype(value);
        if (has_data(args.deltas)) return DeformKernel<T, true>(args).backward();
        DeformKernel<T, false>(args).backward();
    });
}

void deform_roi_pool_forward(const DeformRoIPool& args) {
    with_type(args.dtype, [&](auto value) { RoIPooling<decltype(value)>(args).forward(); });
}

void deform_roi_pool_backward(const DeformRoIPool& args) {
    with_type(args.dtype, [&](auto value) { RoIPooling<decltype(value)>(args).backward(); });
}

extern const Kernels kernels;
#define DCN_NAME(name, Arguments) name,
const Kernels kernels{DCN_KERNELS(DCN_NAME)};
#undef DCN_NAME

}  // namespace DCN_ISA
}  // namespace dcn
