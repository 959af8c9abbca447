#include "module.h"

#include <tvm/ffi/container/tensor.h>

#include <cstring>

#include "errors.h"
#include "runtime.h"

namespace dspark::vulkan {
namespace {

namespace ffi = tvm::ffi;

class ModuleObj final : public ffi::ModuleObj {
 public:
  explicit ModuleObj(std::shared_ptr<KernelSet> kernels) : kernels_(std::move(kernels)) {}

  const char* kind() const final { return "vulkan"; }
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

VkDeviceAddress AddressOf(const ffi::AnyView& value, const Device& device, const Kernel& kernel) {
  if (auto pointer = value.try_cast<void*>()) return reinterpret_cast<VkDeviceAddress>(*pointer);
  if (auto tensor = value.try_cast<DLTensor*>()) {
    return reinterpret_cast<VkDeviceAddress>((*tensor)->data) + (*tensor)->byte_offset;
  }
  device.Refuse("kernel " + kernel.name + ": a buffer was expected, " + value.GetTypeKey() + " was given");
}

template <typename T>
void Store(char* block, const Argument& argument, T value) {
  std::memcpy(block + argument.offset, &value, sizeof(value));
}

void StoreScalar(char* block, const Argument& argument, const ffi::AnyView& value) {
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
      break;
  }
}

/// Groups by x, y, z; no product of theirs is looked at, an empty one launches nothing.
std::array<uint32_t, 3> GroupsOf(const Kernel& kernel, const ffi::PackedArgs& args, const Device& device) {
  std::array<uint32_t, 3> groups{1, 1, 1};
  for (size_t i = 0; i < kernel.launch.size(); ++i) {
    const int64_t extent = args[static_cast<int>(kernel.arguments.size() + i)].cast<int64_t>();
    const int place = kernel.launch[i];
    if (place >= 3) {
      if (extent == kernel.workgroup[place - 3]) continue;
      device.Refuse("kernel " + kernel.name + ": compiled for " + std::to_string(kernel.workgroup[place - 3]) +
                    " threads, launched with " + std::to_string(extent));
    }
    const uint32_t most = device.capabilities.properties.limits.maxComputeWorkGroupCount[place];
    if (extent < 0 || extent > most) {
      device.Refuse("kernel " + kernel.name + ": " + std::to_string(extent) + " workgroups, the device takes " +
                    std::to_string(most));
    }
    groups[place] = static_cast<uint32_t>(extent);
  }
  return groups;
}

}  // namespace

int& CurrentDevice() {
  static thread_local int current = 0;
  return current;
}

KernelSet::KernelSet(ffi::Bytes bytes) : bytes_(std::move(bytes)), words_((bytes_.size() + 3) / 4) {
  std::memcpy(words_.data(), bytes_.data(), bytes_.size());
  kernels_ = ParseKernels(reinterpret_cast<const char*>(words_.data()), bytes_.size());
  for (size_t i = 0; i < kernels_.size(); ++i) numbers_[kernels_[i].name] = static_cast<int>(i);
}

KernelSet::~KernelSet() {
  for (auto& [index, pipelines] : pipelines_) {
    Device* device = Runtime::Get().Find(index);
    if (device == nullptr) continue;
    std::lock_guard<std::mutex> lock(device->mutex);
    // Commands that hold them may not have been submitted yet; they hold them until they are over.
    pipelines.clear();
    device->pipelines->Save();
  }
}

int KernelSet::Find(const std::string& name) const {
  auto found = numbers_.find(name);
  return found == numbers_.end() ? -1 : found->second;
}

std::shared_ptr<Pipeline>& KernelSet::PipelineOf(int kernel, int device) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto& pipelines = pipelines_[device];
  pipelines.resize(kernels_.size());
  return pipelines[kernel];
}

void KernelSet::Launch(int number, const ffi::PackedArgs& args) {
  const Kernel& kernel = kernels_[number];
  Device& device = Runtime::Get().At(CurrentDevice());
  if (args.size() != static_cast<int>(kernel.arguments.size() + kernel.launch.size())) {
    device.Refuse("kernel " + kernel.name + ": takes " +
                  std::to_string(kernel.arguments.size() + kernel.launch.size()) + " arguments, " +
                  std::to_string(args.size()) + " were given");
  }
  const std::array<uint32_t, 3> groups = GroupsOf(kernel, args, device);
  if (groups[0] == 0 || groups[1] == 0 || groups[2] == 0) return;
  thread_local std::vector<char> block;
  thread_local std::vector<Use> uses;
  block.assign((kernel.block_bytes + 3) / 4 * 4, 0);
  uses.clear();

  std::lock_guard<std::mutex> lock(device.mutex);
  for (size_t i = 0; i < kernel.arguments.size(); ++i) {
    const Argument& argument = kernel.arguments[i];
    const ffi::AnyView value = args[static_cast<int>(i)];
    if (argument.kind != Argument::kBuffer) {
      StoreScalar(block.data(), argument, value);
      continue;
    }
    const VkDeviceAddress address = AddressOf(value, device, kernel);
    if (address != 0) uses.push_back({device.memory->Find(address).piece, address, argument.access});
    Store(block.data(), argument, address);
  }
  if (kernel.given_up >= 0) {
    const VkDeviceAddress address = device.given_up.address();
    std::memcpy(block.data() + kernel.given_up, &address, sizeof(address));
  }
  std::shared_ptr<Pipeline>& pipeline = PipelineOf(number, device.index);
  if (pipeline == nullptr) pipeline = device.pipelines->Create(kernel);
  device.stream->Launch(kernel, pipeline, block.data(), groups, uses);
}

ffi::Module LoadModule(const ffi::Bytes& bytes) {
  return ffi::Module(ffi::make_object<ModuleObj>(std::make_shared<KernelSet>(bytes)));
}

}  // namespace dspark::vulkan
