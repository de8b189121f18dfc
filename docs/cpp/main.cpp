// Runs a detector that was compiled ahead of time, without Python: prints a line
// "label score x1 y1 x2 y2" for each detection, best first.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

// A binary PPM (P6) without comments as [1, 3, H, W] of uint8, in RGB.
at::Tensor read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be opened");
    std::string kind;
    int64_t width = 0, height = 0, most = 0;
    file >> kind >> width >> height >> most;
    file.get();  // the one space before the pixels
    const bool fits = 0 < width && 0 < height && width < 65536 && height < 65536;
    if (!file || kind != "P6" || most != 255 || !fits) {
        throw std::runtime_error(path + ": expected a PPM file (P6) of 8 bits a colour");
    }
    const at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
    if (!file.read(reinterpret_cast<char*>(pixels.data_ptr()), pixels.numel())) {
        throw std::runtime_error(path + ": ends before the last pixel");
    }
    return pixels.permute({2, 0, 1}).unsqueeze(0).contiguous();
}

int main(int argc, char** argv) try {
    const std::string type = argc > 3 ? argv[3] : "";
    if (type != "uint8" && type != "float32") {
        std::fprintf(stderr, "usage: %s MODEL.pt2 IMAGE.ppm uint8|float32 LIBRARY...\n", argv[0]);
        return 2;
    }
    // Images that the model was not compiled for are an error then, not a read beyond their end.
    setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);
    for (int i = 4; i < argc; i++) {  // each registers its operators
        if (dlopen(argv[i], RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
    }
    const at::Tensor image = read_ppm(argv[2]).to(type == "uint8" ? at::kByte : at::kFloat);
    torch::inductor::AOTIModelPackageLoader model(argv[1]);
    const std::vector<at::Tensor> found = model.run({image});  // [1, D, 4], [1, D], [1, D]
    const at::Tensor order = found.at(1)[0].argsort(/*dim=*/0, /*descending=*/true);
    const at::Tensor boxes = found.at(0)[0].index_select(0, order);
    const at::Tensor scores = found.at(1)[0].index_select(0, order);
    const at::Tensor labels = found.at(2)[0].index_select(0, order);
    for (int64_t i = 0; i < scores.size(0) && scores[i].item<float>() > 0; i++) {
        std::printf("%lld %.7g", static_cast<long long>(labels[i].item<int64_t>()),
                    scores[i].item<float>());
        for (int64_t j = 0; j < 4; j++) std::printf(" %.7g", boxes[i][j].item<float>());
        std::printf("\n");
    }
    return 0;
} catch (const c10::Error& error) {
    std::fprintf(stderr, "error: %s: %s\n", argv[1], error.what_without_backtrace());
    return 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
