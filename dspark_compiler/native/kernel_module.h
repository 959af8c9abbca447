/// What modules of kernels have in common: what TVM asks of them, their kernels by name, and arguments of launches.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace dspark {

/// The number of the device that this thread launches kernels on.
inline int& CurrentDevice() {
  static thread_local int current = 0;
  return current;
}

/// The bytes of a module, and the numbers of its kernels.
class NamedKernels {
 public:
  explicit NamedKernels(tvm::ffi::Bytes bytes) : bytes_(std::move(bytes)) {}
  NamedKernels(const NamedKernels&) = delete;
  NamedKernels& operator=(const NamedKernels&) = delete;

  /// The number of a kernel; -1 where there is none of this name.
  int Find(const std::string& name) const {
    auto found = numbers_.find(name);
    return found == numbers_.end() ? -1 : found->second;
  }

  const tvm::ffi::Bytes& bytes() const { return bytes_; }

 protected:
  template <typename Kernel>
  void Number(const std::vector<Kernel>& kernels) {
    for (size_t i = 0; i < kernels.size(); ++i) numbers_[kernels[i].name] = static_cast<int>(i);
  }

 private:
  tvm::ffi::Bytes bytes_;
  std::unordered_map<std::string, int> numbers_;
};

/// A module as TVM knows it. ``Kernels`` are NamedKernels that launch one of a number.
template <typename Kernels>
class ModuleObj final : public tvm::ffi::ModuleObj {
 public:
  ModuleObj(const char* kind, const tvm::ffi::Bytes& bytes)
      : kind_(kind), kernels_(std::make_shared<Kernels>(bytes)) {}

  const char* kind() const final { return kind_; }
  int GetPropertyMask() const final {
    return tvm::ffi::Module::kBinarySerializable | tvm::ffi::Module::kRunnable;
  }
  tvm::ffi::Bytes SaveToBytes() const final { return kernels_->bytes(); }

  tvm::ffi::Optional<tvm::ffi::Function> GetFunction(const tvm::ffi::String& name) final {
    const int kernel = kernels_->Find(name);
    if (kernel < 0) return std::nullopt;
    // A function may outlive its module.
    return tvm::ffi::Function::FromPacked([kernels = kernels_, kernel](tvm::ffi::PackedArgs args, tvm::ffi::Any*) {
      kernels->Launch(kernel, args);
    });
  }

 private:
  const char* kind_;
  std::shared_ptr<Kernels> kernels_;
};

/// Whether a launch has all arguments of a kernel; ``refuse`` throws its argument.
template <typename Kernel, typename Refusal>
void CheckCount(const Kernel& kernel, const tvm::ffi::PackedArgs& args, const Refusal& refuse) {
  const size_t wanted = kernel.arguments.size() + kernel.launch.size();
  if (args.size() == static_cast<int>(wanted)) return;
  refuse("kernel " + kernel.name + ": takes " + std::to_string(wanted) + " arguments, " +
         std::to_string(args.size()) + " were given");
}

/// Where the buffer that an argument gives begins.
template <typename Kernel, typename Refusal>
void* AddressOf(const Kernel& kernel, const tvm::ffi::AnyView& value, const Refusal& refuse) {
  if (auto pointer = value.try_cast<void*>()) return *pointer;
  auto tensor = value.try_cast<DLTensor*>();
  if (!tensor) refuse("kernel " + kernel.name + ": a buffer was expected, " + value.GetTypeKey() + " was given");
  return static_cast<char*>((*tensor)->data) + (*tensor)->byte_offset;
}

template <typename Argument, typename T>
void Store(char* block, const Argument& argument, T value) {
  std::memcpy(block + argument.offset, &value, sizeof(value));
}

/// Puts a number where the kernel reads it; does nothing for a buffer.
template <typename Argument>
void StoreNumber(char* block, const Argument& argument, const tvm::ffi::AnyView& value) {
  switch (argument.kind) {
    case Argument::kInt32:
      return Store(block, argument, static_cast<int32_t>(value.cast<int64_t>()));
    case Argument::kInt64:
      return Store(block, argument, value.cast<int64_t>());
    case Argument::kFloat32:
      return Store(block, argument, static_cast<float>(value.cast<double>()));
    case Argument::kFloat64:
      return Store(block, argument, value.cast<double>());
    case Argument::kBuffer:
      return;
  }
}

}  // namespace dspark
