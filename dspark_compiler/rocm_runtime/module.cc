#include "module.h"

#include <tvm/ffi/extra/c_env_api.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "fields.h"

namespace dspark::rocm {
namespace {

namespace ffi = tvm::ffi;

constexpr size_t kPage = 4096;

/// Groups by x, y, z, then threads of a group by x, y, z.
std::array<uint32_t, 6> ExtentsOf(const Kernel& kernel, const ffi::PackedArgs& args) {
  std::array<uint32_t, 6> extents{1, 1, 1, 1, 1, 1};
  for (size_t i = 0; i < kernel.launch.size(); ++i) {
    const int64_t extent = args[static_cast<int>(kernel.arguments.size() + i)].cast<int64_t>();
    if (extent < 0 || extent > INT32_MAX) {
      Refuse("kernel " + kernel.name + ": cannot be launched with an extent of " + std::to_string(extent));
    }
    extents[kernel.launch[i]] = static_cast<uint32_t>(extent);
  }
  const uint64_t threads = uint64_t{extents[3]} * extents[4] * extents[5];
  if (threads > kernel.most_threads) {
    Refuse("kernel " + kernel.name + ": compiled for " + std::to_string(kernel.most_threads) +
           " threads, launched with " + std::to_string(threads));
  }
  return extents;
}

}  // namespace

KernelSet::KernelSet(const ffi::Bytes& bytes)
    : NamedKernels(bytes), parsed_(ParseModule(bytes.data(), bytes.size())), code_(nullptr, std::free) {
  const size_t size = bytes.size() - parsed_.code;
  code_.reset(static_cast<char*>(std::aligned_alloc(kPage, (size + kPage - 1) / kPage * kPage)));
  std::memcpy(code_.get(), bytes.data() + parsed_.code, size);
  Number(parsed_.kernels);
}

KernelSet::~KernelSet() {
  // Unloading waits for kernels that run, on any stream. It cannot fail to any use: a lost device has forgotten them.
  for (auto& [device, loaded] : loaded_) {
    const Hip& hip = Hip::Get();
    if (hip.SetDevice(device) == 0) hip.ModuleUnload(loaded.module);
  }
}

Handle KernelSet::FunctionOf(int number, int device) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Hip& hip = Hip::Get();
  Loaded& loaded = loaded_[device];
  if (loaded.module == nullptr) {
    Check(hip.ModuleLoadData(&loaded.module, code_.get()), device, "loading code for " + parsed_.arch);
    loaded.functions.resize(parsed_.kernels.size());
  }
  Handle& function = loaded.functions[number];
  if (function == nullptr) {
    const std::string& name = parsed_.kernels[number].name;
    Check(hip.ModuleGetFunction(&function, loaded.module, name.c_str()), device, "kernel " + name);
  }
  return function;
}

void KernelSet::Launch(int number, const ffi::PackedArgs& args) {
  const Kernel& kernel = parsed_.kernels[number];
  CheckCount(kernel, args, Refuse);
  const std::array<uint32_t, 6> at = ExtentsOf(kernel, args);
  if (at[0] == 0 || at[1] == 0 || at[2] == 0) return;  // HIP takes an empty grid for an error
  const int device = CurrentDevice();
  Handle function = FunctionOf(number, device);
  thread_local std::vector<char> block;
  block.assign(kernel.argument_bytes, 0);
  for (size_t i = 0; i < kernel.arguments.size(); ++i) {
    const Argument& argument = kernel.arguments[i];
    const ffi::AnyView value = args[static_cast<int>(i)];
    if (argument.kind == Argument::kBuffer) {
      Store(block.data(), argument, AddressOf(kernel, value, Refuse));
    } else {
      StoreNumber(block.data(), argument, value);
    }
  }
  size_t bytes = block.size();
  Handle extra[] = {LaunchParam(kParamBuffer), block.data(), LaunchParam(kParamBufferSize), &bytes,
                    LaunchParam(kParamEnd)};
  Check(Hip::Get().ModuleLaunchKernel(function, at[0], at[1], at[2], at[3], at[4], at[5], 0,
                                      TVMFFIEnvGetStream(kDLROCM, device), nullptr, extra),
        device, "kernel " + kernel.name);
}

ffi::Module LoadModule(const ffi::Bytes& bytes) {
  return ffi::Module(ffi::make_object<ModuleObj<KernelSet>>("rocm", bytes));
}

}  // namespace dspark::rocm
