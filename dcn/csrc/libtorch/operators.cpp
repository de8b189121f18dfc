// dcn's operators for programs that have LibTorch and no Python: forward passes on the CPU.
//
// A model that was compiled ahead of time calls them by name, and the program that runs it loads this
// library first: docs/cpp builds both. All of PyTorch that it uses is the stable ABI, so that it runs
// with any LibTorch from 2.11 on. Schemas are those of dcn/<operator>/function.py; checks, layouts
// and dtypes are those of definition.py and cpu.py there. Where Python has imported dcn, the names
// are taken: this is not for such a process.
#include "operands.h"

#include <torch/csrc/stable/library.h>

namespace {

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const Maybe& bias, const Maybe& mask, const Ints& stride, const Ints& padding,
                     const Ints& dilation) {
    check_map("input", input);
    const int64_t n = input.size(0), c_in = input.size(1);
    check_weight(weight, bias, c_in);
    const int64_t c_out = weight.size(0), group_in = weight.size(1);
    const Ints kernel{weight.size(2), weight.size(3)};
    const Geometry geometry{kernel, stride, padding, dilation};
    const Ints size = geometry.output_size(input.size(2), input.size(3));
    const int64_t points = geometry.points();
    const int64_t groups = geometry.groups("offset", offset, input, size);
    if (mask) check_shape("mask", *mask, {n, groups * points, size[0], size[1]});

    const ScalarType type = image_type(input), wide = wide_type(input);
    const Tensor image = dense(input, type, MemoryFormat::ChannelsLast);
    const Tensor weights = dense(weight, wide, MemoryFormat::ChannelsLast);
    const Tensor moved = stable::to(offset, wide);
    const Maybe modulation = cast(mask, wide), shift = dense(bias, wide);
    // Then a vector may hold several groups; the kernels for that know one layout of the output.
    const bool narrow = group_in <= 8 && group_in < c_out && c_out == c_in;
    const MemoryFormat format = narrow ? MemoryFormat::ChannelsLast : format_of(input);
    const Tensor output = empty({n, c_out, size[0], size[1]}, type, format);
    dcn::DeformConv2d args{};
    args.grid = geometry.grid();
    args.deltas = deltas(moved, modulation, groups, points);
    args.input = view(image);
    args.weight = view(weights);
    args.bias = view(shift);
    args.output = view(output);
    run(dcn_deform_conv2d_forward, args, type);
    return dense(output, input.scalar_type(), format_of(input));
}

Tensor deform_aggregation(const Tensor& input, const Tensor& offset, const Maybe& mask,
                          const Ints& kernel, const Ints& stride, const Ints& padding,
                          const Ints& dilation, double offset_scale, bool without_centre,
                          int64_t groups) {
    check_map("input", input);
    const int64_t n = input.size(0), h = input.size(1), w = input.size(2), c = input.size(3);
    check(groups > 0 && c > 0 && c % groups == 0, "group",
          "a divisor of " + std::to_string(c) + " channels", {groups});
    check(h * w < kIndices, "input", "less than 2**31 pixels", {h, w});
    const Geometry geometry{kernel, stride, padding, dilation};
    const Ints size = geometry.output_size(h, w);
    const int64_t points = geometry.points() - without_centre;
    // DCNv4 has the K weights of a group behind its 2 * K offsets, and a multiple of 8 channels.
    const int64_t channels = mask ? 2 * groups * points : (3 * groups * points + 7) / 8 * 8;
    check_shape(mask ? "offset" : "offset_mask", offset, {n, size[0], size[1], channels});
    if (mask) check_shape("mask", *mask, {n, size[0], size[1], groups * points});

    const ScalarType type = image_type(input), wide = wide_type(input);
    const Tensor image = dense(input, type, MemoryFormat::Contiguous);
    const Tensor moved = stable::to(offset, wide), weights = mask ? stable::to(*mask, wide) : moved;
    const Tensor output = empty({n, size[0], size[1], c}, type, MemoryFormat::Contiguous);
    const auto part = [&](const Tensor& map, int64_t first, int64_t group, int64_t point) {
        return samples(view_nchw(map), wide, groups, points, first, group, point);
    };
    dcn::DeformAggregation args{};
    args.grid = geometry.grid();
    for (int i = 0; i < 2; i++) {  // the kernel is scaled like the offsets, from its centre
        const int64_t centre = dilation[i] * (kernel[i] - 1) / 2;
        args.grid.start[i] = centre - centre * offset_scale - padding[i];
        args.grid.step[i] = dilation[i] * offset_scale;
    }
    args.grid.scale = offset_scale;
    args.grid.by_column = true;
    args.grid.without_centre = without_centre;
    const int64_t group = (mask ? 2 : 3) * points;
    args.deltas = {part(moved, 1, group, 2), part(moved, 0, group, 2),
                   mask ? part(weights, 0, points, 1) : part(weights, 2 * points, group, 1)};
    args.input = view_nchw(image);
    args.output = view_nchw(output);
    run(dcn_deform_aggregation_forward, args, type);
    return stable::to(output, input.scalar_type());
}

// Channel i * (C / count) + j becomes channel j * count + i.
Tensor interleave(const Tensor& map, int64_t count) {
    if (count == 1 || count == map.size(1)) return map;
    const Ints parts{map.size(0), count, map.size(1) / count, map.size(2), map.size(3)};
    return stable::flatten(stable::transpose(stable::view(map, parts), 1, 2), 1, 2);
}

Tensor local_deform_kernel(const Tensor& input, const Tensor& offset, const Tensor& weight,
                           const Maybe& bias, const Maybe& input_offset, const Ints& kernel,
                           const Ints& stride, const Ints& padding, const Ints& dilation,
                           bool clamp) {
    check_map("input", input);
    const int64_t n = input.size(0), c = input.size(1);
    check_weight(weight, bias, c);
    const int64_t scope[2] = {weight.size(2), weight.size(3)};
    const Geometry geometry{kernel, stride, padding, dilation};
    const Ints size = geometry.output_size(input.size(2), input.size(3));
    const int64_t points = geometry.points();
    const int64_t rotations = geometry.groups("offset", offset, input, size);
    const int64_t moving =
        input_offset ? geometry.groups("input_offset", *input_offset, input, size) : 0;
    check(weight.size(0) == c && weight.size(1) == 1, "weight",
          "that of a depthwise convolution (others need Python)", shape_of(weight));
    check(moving == 0 || (moving == 1 && rotations == 1), "input_offset, offset",
          "one group each (more need Python)", {moving, rotations});
    check(std::max(input.size(2) * input.size(3), scope[0] * scope[1]) < kIndices, "input, weight",
          "less than 2**31 pixels and cells", {input.size(2), input.size(3), scope[0], scope[1]});

    const ScalarType type = image_type(input), wide = wide_type(input);
    // The channels of a rotation group, which are `rotations` apart, follow each other there.
    const auto by_group = [&](const Tensor& map, ScalarType type) {
        return dense(interleave(map, c / rotations), type, MemoryFormat::ChannelsLast);
    };
    const Tensor image = by_group(input, type);
    const Tensor cells = by_group(stable::transpose(weight, 0, 1), wide);
    const Maybe shift = bias ? Maybe(by_group(stable::view(*bias, Ints{1, c, 1, 1}), wide)) : bias;
    const Tensor turned = stable::to(offset, wide);
    const Maybe moved = cast(input_offset, wide);
    const Tensor output = empty({n, c, size[0], size[1]}, type, MemoryFormat::ChannelsLast);
    dcn::LocalDeformKernel args{};
    args.grid = geometry.grid();
    if (moved) args.deltas = deltas(*moved, Maybe(), 1, points);
    args.scope_grid = geometry.grid();
    for (int i = 0; i < 2; i++) {
        args.scope_grid.stride[i] = 0;
        args.scope_grid.start[i] = (scope[i] - kernel[i]) / 2.0;
        args.scope_grid.step[i] = 1;
    }
    args.scope_grid.clamped = clamp;
    args.scope_deltas = deltas(turned, Maybe(), rotations, points);
    args.input = view(image);
    args.weight = {cells.data_ptr(), {scope[0], scope[1], c}, {scope[1] * c, c, 1}};
    if (shift) args.bias = {shift->data_ptr(), {c}, {1}};
    args.output = view(output);
    run(dcn_local_deform_kernel_forward, args, type);
    return dense(interleave(output, rotations), input.scalar_type(), format_of(input));
}

Tensor deform_roi_pool(const Tensor& input, Tensor rois, const Maybe& offset, const Maybe& mask,
                       const Ints& output_size, double spatial_scale, int64_t sampling_ratio,
                       double gamma) {
    check_map("input", input);
    check_pair("output_size", output_size, 1);
    const int64_t n = input.size(0), c = input.size(1), h = output_size[0], w = output_size[1];
    check(c > 0 && input.size(2) > 0 && input.size(3) > 0, "input", "an empty batch alone",
          shape_of(input));
    check(rois.dim() == 2 && rois.size(1) == 5, "rois", "(K, 5)", shape_of(rois));
    const int64_t count = rois.size(0);
    if (offset) check_shape("offset", *offset, {count, 2, h, w});
    if (mask) check_shape("mask", *mask, {count, 1, h, w});
    const Tensor numbers =
        dense(stable::select(rois, 1, 0), ScalarType::Double, MemoryFormat::Contiguous);
    Ints images(count);
    for (int64_t k = 0; k < count; k++) {
        const double image = numbers.const_data_ptr<double>()[k];
        STD_TORCH_CHECK(image >= 0 && image < n, "rois[", k, ", 0] is ", image,
                        ": expected a batch index from 0 to ", n - 1);
        images[k] = static_cast<int64_t>(image);
    }

    const ScalarType type = image_type(input), wide = wide_type(input);
    const Tensor image = dense(input, type, MemoryFormat::ChannelsLast);
    const Tensor boxes = dense(stable::narrow(rois, 1, 1, 4), wide, MemoryFormat::Contiguous);
    const Maybe moved = dense(offset, wide), modulation = dense(mask, wide);
    const Tensor output = empty({count, c, h, w}, type, MemoryFormat::Contiguous);
    dcn::DeformRoIPool args{};
    args.sampling_ratio = sampling_ratio;
    args.spatial_scale = spatial_scale;
    args.gamma = gamma;
    args.input = view(image);
    args.index = {images.data(), {count}, {1}};
    args.boxes = view(boxes);
    args.offset = view(moved);
    args.mask = view(modulation);
    args.output = view(output);
    run(dcn_deform_roi_pool_forward, args, type);
    return stable::to(output, input.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY(dcn, library) {
    library.def(
        "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, "
        "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation) -> Tensor");
    library.def(
        "deform_aggregation(Tensor input, Tensor offset, Tensor? mask, SymInt[2] kernel, "
        "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, float offset_scale, "
        "bool without_centre, SymInt groups) -> Tensor");
    library.def(
        "local_deform_kernel(Tensor input, Tensor offset, Tensor weight, Tensor? bias, "
        "Tensor? input_offset, SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, "
        "SymInt[2] dilation, bool clamp) -> Tensor");
    library.def(
        "deform_roi_pool(Tensor input, Tensor rois, Tensor? offset, Tensor? mask, "
        "SymInt[2] output_size, float spatial_scale, SymInt sampling_ratio, float gamma) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(dcn, CPU, library) {
    library.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
    library.impl("deform_aggregation", TORCH_BOX(&deform_aggregation));
    library.impl("local_deform_kernel", TORCH_BOX(&local_deform_kernel));
    library.impl("deform_roi_pool", TORCH_BOX(&deform_roi_pool));
}
