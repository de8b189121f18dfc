// What Python hands over: dcn/cpu.py mirrors these structures field by field.
#pragma once

#include <cstdint>

namespace dcn {

enum DataType : int64_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };

// Tensors named "image" have `dtype`; all others its compute type, which is float32 for bfloat16.
// Strides are in elements. What is not needed is null.
struct DeformConv2d {
    int64_t dtype, threads;
    int64_t n, c_in, h, w, c_out, kh, kw, out_h, out_w, groups, deform_groups;
    int64_t stride[2], padding[2], dilation[2];

    const void* input;  // image [N, H, W, C_in], dense
    const void* offset;
    int64_t offset_stride[4];
    const void* mask;  // may be null
    int64_t mask_stride[4];
    const void* weight;  // [C_out, kh, kw, C_in / groups], dense
    const void* bias;    // may be null

    // Forward: the output. Backward: its gradient. An image.
    void* output;
    int64_t output_stride[4];

    // Backward only.
    void* grad_input;  // [N, H, W, C_in], dense, zeroed
    void* grad_offset;
    int64_t grad_offset_stride[4];
    void* grad_mask;
    int64_t grad_mask_stride[4];
    void* grad_weight;  // [C_out, kh, kw, C_in / groups], dense, zeroed
};

struct DeformRoIPool {
    int64_t dtype, threads;
    int64_t c, h, w, rois, pooled_h, pooled_w, sampling_ratio;
    double spatial_scale, gamma;

    const void* input;     // image [N, H, W, C], dense
    const int64_t* index;  // [K], which of the N images
    const void* boxes;     // [K, 4], dense
    const void* offset;    // [K, 2, ph, pw], dense; may be null
    const void* mask;      // [K, 1, ph, pw], dense; may be null

    // Forward: the output. Backward: its gradient. An image.
    void* output;
    int64_t output_stride[4];

    // Backward only.
    void* grad_input;   // [N, H, W, C], dense, zeroed
    void* grad_offset;  // as offset
    void* grad_mask;    // as mask
};

// The kernels of one instruction set. They throw std::bad_alloc, before they have written anything.
struct Kernels {
    void (*deform_conv2d_forward)(const DeformConv2d&);
    void (*deform_conv2d_backward)(const DeformConv2d&);
    void (*deform_roi_pool_forward)(const DeformRoIPool&);
    void (*deform_roi_pool_backward)(const DeformRoIPool&);
};

}  // namespace dcn
