// What the operators for LibTorch have in common: checks of what the kernels rely on, whose errors name
// the argument, and tensors in the layouts and dtypes that the kernels want.
#pragma once

// The stable ABI as of the oldest LibTorch that this is to run with.
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "../arguments.h"

extern "C" {
#define DCN_DECLARE(name, Arguments) int dcn_##name(const dcn::Arguments* args);
DCN_KERNELS(DCN_DECLARE)
#undef DCN_DECLARE
}

namespace {

namespace stable = torch::stable;
using stable::Tensor;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using Maybe = std::optional<Tensor>;
using Ints = std::vector<int64_t>;

constexpr int64_t kIndices = int64_t{1} << 31;  // the kernels number pixels in 32 bits

std::string shown(const Ints& values) {
    std::string text;
    for (int64_t value : values) text += (text.empty() ? "(" : ", ") + std::to_string(value);
    return text + ")";
}

void check(bool holds, const char* name, const std::string& expected, const Ints& found) {
    STD_TORCH_CHECK(holds, name, ": expected ", expected, ", got ", shown(found));
}

Ints shape_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

void check_shape(const char* name, const Tensor& tensor, const Ints& expected) {
    check(shape_of(tensor) == expected, name, shown(expected), shape_of(tensor));
}

void check_map(const char* name, const Tensor& tensor) {
    check(tensor.dim() == 4, name, "four dimensions", shape_of(tensor));
}

void check_pair(const char* name, const Ints& values, int64_t least) {
    check(values.size() == 2 && *std::min_element(values.begin(), values.end()) >= least &&
              *std::max_element(values.begin(), values.end()) < kIndices,
          name, "two numbers from " + std::to_string(least) + " to 2**31 - 1", values);
}

// Of a convolution in groups of an input with so many channels.
void check_weight(const Tensor& weight, const Maybe& bias, int64_t c_in) {
    check_map("weight", weight);
    check(weight.numel() > 0 && c_in > 0 && c_in % weight.size(1) == 0 &&
              weight.size(0) % (c_in / weight.size(1)) == 0,
          "weight", "(C_out, " + std::to_string(c_in) + " / groups, h, w), C_out in as many groups",
          shape_of(weight));
    if (bias) check_shape("bias", *bias, {weight.size(0)});
}

struct Geometry {
    const Ints &kernel, &stride, &padding, &dilation;

    int64_t points() const { return kernel[0] * kernel[1]; }

    // (H_out, W_out)
    Ints output_size(int64_t h, int64_t w) const {
        check_pair("kernel", kernel, 1);
        check_pair("stride", stride, 1);
        check_pair("padding", padding, 0);
        check_pair("dilation", dilation, 1);
        Ints size{h, w};
        for (int i = 0; i < 2; i++) {
            const int64_t room = size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1;
            check(size[i] > 0 && room >= 0, "input", "more pixels for kernel and dilation", {h, w});
            size[i] = room / stride[i] + 1;
        }
        return size;
    }

    dcn::Grid grid() const {
        dcn::Grid grid{};
        for (int i = 0; i < 2; i++) {
            grid.kernel[i] = kernel[i];
            grid.stride[i] = stride[i];
            grid.start[i] = -padding[i];
            grid.step[i] = dilation[i];
        }
        grid.scale = 1;
        return grid;
    }

    // Of offsets [N, groups * points * 2, H_out, W_out].
    int64_t groups(const char* name, const Tensor& offset, const Tensor& input, Ints out) const {
        check_map(name, offset);
        const int64_t groups = offset.size(1) / (2 * points());
        check(groups > 0 && input.size(1) % groups == 0, name,
              "2 * groups * " + std::to_string(points()) + " channels, groups dividing the input's",
              shape_of(offset));
        check_shape(name, offset, {input.size(0), 2 * groups * points(), out[0], out[1]});
        return groups;
    }
};

// What an image is stored in for the kernels.
ScalarType image_type(const Tensor& input) {
    const ScalarType type = input.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float ||
                        type == ScalarType::BFloat16 || type == ScalarType::Half,
                    "input: expected a floating-point tensor");
    return type == ScalarType::Half ? ScalarType::Float : type;
}

// And what all else is: 16-bit types are sampled and summed in float32.
ScalarType wide_type(const Tensor& input) {
    return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Maybe cast(const Maybe& tensor, ScalarType type) {
    return tensor ? Maybe(stable::to(*tensor, type)) : Maybe();
}

Tensor dense(const Tensor& tensor, ScalarType type, MemoryFormat format) {
    return stable::contiguous(stable::to(tensor, type), format);
}

Maybe dense(const Maybe& tensor, ScalarType type) {
    return tensor ? Maybe(dense(*tensor, type, MemoryFormat::Contiguous)) : Maybe();
}

Tensor empty(const Ints& shape, ScalarType type, MemoryFormat format) {
    return stable::empty(shape, type, std::nullopt, std::nullopt, std::nullopt, format);
}

// Of the output: the rule of dcn/layout.py.
MemoryFormat format_of(const Tensor& input) {
    if (input.is_contiguous() || input.stride(1) == 0) return MemoryFormat::Contiguous;
    int64_t least = 0;
    for (int dim : {1, 3, 2, 0}) {
        if (input.size(dim) == 0 || input.stride(dim) < least ||
            (dim == 0 && least == input.stride(1))) {
            return MemoryFormat::Contiguous;
        }
        least = input.stride(dim) * input.size(dim);
    }
    return MemoryFormat::ChannelsLast;
}

dcn::Tensor view(const Tensor& tensor) {
    dcn::Tensor result{tensor.data_ptr(), {}, {}};
    std::copy(tensor.sizes().begin(), tensor.sizes().end(), result.size);
    std::copy(tensor.strides().begin(), tensor.strides().end(), result.stride);
    return result;
}

dcn::Tensor view(const Maybe& tensor) { return tensor ? view(*tensor) : dcn::Tensor{}; }

// [N, H, W, C] as [N, C, H, W].
dcn::Tensor view_nchw(const Tensor& tensor) {
    dcn::Tensor result = view(tensor);
    for (int64_t* of : {result.size, result.stride}) std::rotate(of + 1, of + 3, of + 4);
    return result;
}

// Of a map [N, C, H, W] the view [N, G, K, H, W] in which point k of group g is the channel
// first + g * group + k * point.
dcn::Tensor samples(const dcn::Tensor& map, ScalarType type, int64_t groups, int64_t points,
                    int64_t first, int64_t group, int64_t point) {
    const int64_t *size = map.size, *stride = map.stride;
    const int64_t bytes = type == ScalarType::Double ? sizeof(double) : sizeof(float);
    char* const data = static_cast<char*>(map.data);
    return {data == nullptr ? data : data + first * stride[1] * bytes,  // null where N is 0
            {size[0], groups, points, size[2], size[3]},
            {stride[0], group * stride[1], point * stride[1], stride[2], stride[3]}};
}

// Of offsets [N, G * K * 2, H, W], (dy, dx) of a point, and masks [N, G * K, H, W].
dcn::Deltas deltas(const Tensor& offset, const Maybe& mask, int64_t groups, int64_t points) {
    const auto part = [&](const Tensor& map, int64_t first, int64_t step) {
        return samples(view(map), map.scalar_type(), groups, points, first, points * step, step);
    };
    return {part(offset, 0, 2), part(offset, 1, 2), mask ? part(*mask, 0, 1) : dcn::Tensor{}};
}

template <typename Arguments>
void run(int (*kernel)(const Arguments*), Arguments& args, ScalarType type) {
    args.dtype = type == ScalarType::Double     ? dcn::kFloat64
                 : type == ScalarType::BFloat16 ? dcn::kBFloat16
                                                : dcn::kFloat32;
    args.threads = stable::get_num_threads();
    STD_TORCH_CHECK(kernel(&args) == 0, "dcn: no memory for the kernel's buffers");
}

}  // namespace
