#include "module.h"

#include <array>
#include <cstring>

#include "runtime.h"

namespace dspark::vulkan {
namespace {

namespace ffi = tvm::ffi;

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

KernelSet::KernelSet(const ffi::Bytes& bytes) : NamedKernels(bytes), words_((bytes.size() + 3) / 4) {
  std::memcpy(words_.data(), bytes.data(), bytes.size());
  kernels_ = ParseKernels(reinterpret_cast<const char*>(words_.data()), bytes.size());
  Number(kernels_);
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

std::shared_ptr<Pipeline>& KernelSet::PipelineOf(int kernel, int device) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto& pipelines = pipelines_[device];
  pipelines.resize(kernels_.size());
  return pipelines[kernel];
}

void KernelSet::Launch(int number, const ffi::PackedArgs& args) {
  const Kernel& kernel = kernels_[number];
  Device& device = Runtime::Get().At(CurrentDevice());
  const auto refuse = [&device](const std::string& message) { device.Refuse(message); };
  CheckCount(kernel, args, refuse);
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
      StoreNumber(block.data(), argument, value);
      continue;
    }
    const auto address = reinterpret_cast<VkDeviceAddress>(AddressOf(kernel, value, refuse));
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
  return ffi::Module(ffi::make_object<ModuleObj<KernelSet>>("vulkan", bytes));
}

}  // namespace dspark::vulkan
