#include "module.h"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "fields.h"

namespace dspark::rocm {
namespace {

namespace ffi = tvm::ffi;

constexpr size_t kPage = 4096;

class ModuleObj final : public ffi::ModuleObj {
 public:
  explicit ModuleObj(std::shared_ptr<KernelSet> kernels) : kernels_(std::move(kernels)) {}

  const char* kind() const final { return "rocm"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return kernels_->bytes(); }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    const int kernel = kernels_->Find(name);
    if (kernel < 0) return std::nullopt;
    // A function may outlive its module.
    return ffi::Function::FromPacked(
        [kernels = kernels_, kernel](ffi::PackedArgs args, ffi::Any*) { kernels->Launch(kernel, args); });
  }

 private:
  std::shared_ptr<KernelSet> kernels_;
};

void* AddressOf(const ffi::AnyView& value, const Kernel& kernel) {
  if (auto pointer = value.try_cast<void*>()) return *pointer;
  if (auto tensor = value.try_cast<DLTensor*>()) {
    return static_cast<char*>((*tensor)->data) + (*tensor)->byte_offset;
  }
  Refuse("kernel " + kernel.name + ": a buffer was expected, " + value.GetTypeKey() + " was given");
}

template <typename T>
void Store(char* block, const Argument& argument, T value) {
  std::memcpy(block + argument.offset, &value, sizeof(value));
}

void StoreArgument(char* block, const Argument& argument, const ffi::AnyView& value, const Kernel& kernel) {
  switch (argument.kind) {
    case Argument::kBuffer:
      return Store(block, argument, AddressOf(value, kernel));
    case Argument::kInt32:
      return Store(block, argument, static_cast<int32_t>(value.cast<int64_t>()));
    case Argument::kInt64:
      return Store(block, argument, value.cast<int64_t>());
    case Argument::kFloat32:
      return Store(block, argument, static_cast<float>(value.cast<double>()));
    case Argument::kFloat64:
      return Store(block, argument, value.cast<double>());
  }
}

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

int& CurrentDevice() {
  static thread_local int current = 0;
  return current;
}

KernelSet::KernelSet(ffi::Bytes bytes)
    : bytes_(std::move(bytes)), parsed_(ParseModule(bytes_.data(), bytes_.size())), code_(nullptr, std::free) {
  const size_t size = bytes_.size() - parsed_.code;
  code_.reset(static_cast<char*>(std::aligned_alloc(kPage, (size + kPage - 1) / kPage * kPage)));
  std::memcpy(code_.get(), bytes_.data() + parsed_.code, size);
  for (size_t i = 0; i < parsed_.kernels.size(); ++i) numbers_[parsed_.kernels[i].name] = static_cast<int>(i);
}

KernelSet::~KernelSet() {
  // Unloading waits for kernels that run, on any stream. It cannot fail to any use: a lost device has forgotten them.
  for (auto& [device, loaded] : loaded_) {
    const Hip& hip = Hip::Get();
    if (hip.SetDevice(device) == 0) hip.ModuleUnload(loaded.module);
  }
}

int KernelSet::Find(const std::string& name) const {
  auto found = numbers_.find(name);
  return found == numbers_.end() ? -1 : found->second;
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
  const size_t wanted = kernel.arguments.size() + kernel.launch.size();
  if (args.size() != static_cast<int>(wanted)) {
    Refuse("kernel " + kernel.name + ": takes " + std::to_string(wanted) + " arguments, " +
           std::to_string(args.size()) + " were given");
  }
  const std::array<uint32_t, 6> at = ExtentsOf(kernel, args);
  if (at[0] == 0 || at[1] == 0 || at[2] == 0) return;  // HIP takes an empty grid for an error
  const int device = CurrentDevice();
  Handle function = FunctionOf(number, device);
  thread_local std::vector<char> block;
  block.assign(kernel.argument_bytes, 0);
  for (size_t i = 0; i < kernel.arguments.size(); ++i) {
    StoreArgument(block.data(), kernel.arguments[i], args[static_cast<int>(i)], kernel);
  }
  size_t bytes = block.size();
  Handle extra[] = {LaunchParam(kParamBuffer), block.data(), LaunchParam(kParamBufferSize), &bytes,
                    LaunchParam(kParamEnd)};
  Check(Hip::Get().ModuleLaunchKernel(function, at[0], at[1], at[2], at[3], at[4], at[5], 0,
                                      TVMFFIEnvGetStream(kDLROCM, device), nullptr, extra),
        device, "kernel " + kernel.name);
}

ffi::Module LoadModule(const ffi::Bytes& bytes) {
  return ffi::Module(ffi::make_object<ModuleObj>(std::make_shared<KernelSet>(bytes)));
}

}  // namespace dspark::rocm
