// What Python hands over, field by field: see dcn/native.py.
#pragma once

#include <cstdint>

namespace dcn {

enum DataType : int64_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };

// Strides are in elements. Without data there is no such tensor, or it is not wanted.
struct Tensor {
    void* data;
    int64_t size[6], stride[6];
};

// A kernel's points: see dcn/grid.py. Pairs are (vertical, horizontal).
struct Grid {
    int64_t kernel[2], stride[2], by_column, without_centre, clamped;
    double start[2], step[2], scale;
};

// [N, G, K, H_out, W_out] each; the mask may be missing.
struct Deltas {
    Tensor y, x, mask;
};

// Tensors named "image" have `dtype`; all others its compute type, which is float32 for bfloat16.
struct Call {
    int64_t dtype, threads;
};

struct DeformConv2d : Call {
    Grid grid;
    Deltas deltas;
    Tensor input;   // image [N, C_in, H, W], dense and channels-last
    Tensor weight;  // [C_out, C_in / groups, kh, kw], dense and channels-last
    Tensor bias;    // [C_out], dense
    Tensor output;  // image [N, C_out, H_out, W_out]; where groups have 1 to 8 channels, and as many
                    // outputs, dense and channels-last; in the backward pass its gradient

    // Backward only.
    Deltas grad_deltas;
    Tensor grad_input;   // as the input, zeroed
    Tensor grad_weight;  // as the weight, zeroed
};

// Sums over the samples of a group, without a product: DCNv3 and DCNv4.
struct DeformAggregation : Call {
    Grid grid;
    Deltas deltas;
    Tensor input;   // image [N, C, H, W], dense and channels-last
    Tensor output;  // image [N, C, H_out, W_out], dense and channels-last; or its gradient

    // Backward only.
    Deltas grad_deltas;
    Tensor grad_input;  // as the input, zeroed
};

// Of a depthwise convolution, whose kernels are read from the weight at every position.
struct LocalDeformKernel : Call {
    Grid grid;      // on the input
    Deltas deltas;  // there; missing where samples do not move, else of one group
    Grid scope_grid;
    Deltas scope_deltas;
    Tensor input;   // image [N, C, H, W], dense and channels-last; the channels of a group of
                    // scope_deltas follow each other
    Tensor weight;  // [S_h, S_w, C], dense
    Tensor bias;    // [C], dense
    Tensor output;  // image [N, C, H_out, W_out], dense and channels-last; or its gradient

    // Backward only.
    Deltas grad_deltas, grad_scope_deltas;
    Tensor grad_input;   // as the input, zeroed
    Tensor grad_weight;  // as the weight, zeroed
};

struct DeformRoIPool : Call {
    int64_t sampling_ratio;
    double spatial_scale, gamma;
    Tensor input;   // image [N, C, H, W], dense and channels-last
    Tensor index;   // [K] of int64_t: which of the N images
    Tensor boxes;   // [K, 4], dense
    Tensor offset;  // [K, 2, ph, pw], dense
    Tensor mask;    // [K, 1, ph, pw], dense
    Tensor output;  // image [K, C, ph, pw]; in the backward pass its gradient

    // Backward only.
    Tensor grad_input;   // as the input, zeroed
    Tensor grad_offset;  // as the offset
    Tensor grad_mask;    // as the mask
};

// Every kernel, with what it takes. They throw std::bad_alloc before they have written anything.
#define DCN_KERNELS(KERNEL)                                 \
    KERNEL(deform_conv2d_forward, DeformConv2d)             \
    KERNEL(deform_conv2d_backward, DeformConv2d)            \
    KERNEL(deform_aggregation_forward, DeformAggregation)   \
    KERNEL(deform_aggregation_backward, DeformAggregation)  \
    KERNEL(local_deform_kernel_forward, LocalDeformKernel)  \
    KERNEL(local_deform_kernel_backward, LocalDeformKernel) \
    KERNEL(deform_roi_pool_forward, DeformRoIPool)          \
    KERNEL(deform_roi_pool_backward, DeformRoIPool)

// Those of one instruction set.
struct Kernels {
#define DCN_POINTER(name, Arguments) void (*name)(const Arguments&);
    DCN_KERNELS(DCN_POINTER)
#undef DCN_POINTER
};

}  // namespace dcn
