// A program without Python: loads the engine, then a package of AOTInductor, and prints the numbers of its results.
//
//     without_python engine.so package.pt2
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <iostream>

int main(int, char **argv)
{
    if (!dlopen(argv[1], RTLD_NOW | RTLD_LOCAL)) {
        std::cerr << dlerror() << "\n";
        return 1;
    }
    torch::inductor::AOTIModelPackageLoader program(argv[2]);
    const at::Tensor x = at::linspace(-1, 1, 72).view({6, 4, 3}), hx = at::linspace(-1, 1, 80).view({4, 4, 5});
    std::cout.precision(9);
    for (const at::Tensor &found : program.run({x, hx}))
        for (int64_t i = 0; i < found.numel(); i++)
            std::cout << found.contiguous().data_ptr<float>()[i] << "\n";
}
