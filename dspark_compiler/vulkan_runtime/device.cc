#include "device.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "errors.h"

namespace dspark::vulkan {

Device::Device(const Instance& instance, int index) : index(index), instance_(instance.functions) {
  physical = instance.devices[index];
  FeatureChain enabled;
  capabilities = Probe(instance_, physical, index, &enabled);

  const float priority = 1.0f;
  VkDeviceQueueCreateInfo queue_info{VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO};
  queue_info.queueFamilyIndex = capabilities.queue_family;
  queue_info.queueCount = 1;
  queue_info.pQueuePriorities = &priority;
  std::vector<const char*> extensions;
  for (const std::string& name : capabilities.extensions) extensions.push_back(name.c_str());
  VkDeviceCreateInfo info{VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, &enabled.core};
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue_info;
  info.enabledExtensionCount = static_cast<uint32_t>(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  Check(instance_.CreateDevice(physical, &info, nullptr, &handle), "vkCreateDevice");
  functions.Load(instance_, handle);
  functions.GetDeviceQueue(handle, capabilities.queue_family, 0, &queue);
  memory = std::make_unique<Memory>(*this);
  pipelines = std::make_unique<Pipelines>(*this);
  stream = std::make_unique<Stream>(*this);
  clock = std::make_unique<Clock>(*this);
  given_up = memory->Allocate(sizeof(uint32_t), MemoryKind::kHost);
  std::memset(given_up.mapped(), 0, sizeof(uint32_t));
}

Device::~Device() {
  if (handle == VK_NULL_HANDLE) return;
  functions.DeviceWaitIdle(handle);
  clock.reset();
  stream.reset();
  pipelines.reset();
  memory.reset();
  functions.DestroyDevice(handle, nullptr);
}

void Device::Check(VkResult result, const char* call) {
  if (result == VK_SUCCESS) return;
  if (result == VK_ERROR_DEVICE_LOST) {
    lost_ = true;
    CheckAlive();
  }
  Refuse(std::string(call) + ": " + Describe(result));
}

void Device::Refuse(const std::string& message) const { Fail(Title(capabilities, index) + ": " + message); }

void Device::CheckWaits() const {
  volatile uint32_t* word = reinterpret_cast<volatile uint32_t*>(given_up.mapped());
  if (*word == 0) return;
  *word = 0;
  Refuse("a kernel waited in vain for numbers that another was to publish, and what came of it is wrong; " +
         std::string(Overlaps(capabilities) ? "set DSPARK_VULKAN_OVERLAP=0" : "please report it with the model"));
}

void Device::CheckAlive() const {
  if (lost_) {
    Refuse("the driver reports the device as lost (VK_ERROR_DEVICE_LOST), with all that was on it; start a new process");
  }
}

void Device::ReadMemoryTypes(VkPhysicalDeviceMemoryProperties* properties) const {
  VkPhysicalDeviceMemoryProperties2 found{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
  instance_.GetPhysicalDeviceMemoryProperties2(physical, &found);
  *properties = found.memoryProperties;
}

std::pair<uint64_t, uint64_t> Device::MemoryBytes() const {
  VkPhysicalDeviceMemoryBudgetPropertiesEXT budget{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
  VkPhysicalDeviceMemoryProperties2 found{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
  // On a processor the budget is what the machine has left, which is no matter of ours alone.
  const bool has_budget =
      capabilities.has_memory_budget && capabilities.properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU;
  if (has_budget) found.pNext = &budget;
  instance_.GetPhysicalDeviceMemoryProperties2(physical, &found);
  const uint32_t heap = memory->device_heap();
  const uint64_t total = found.memoryProperties.memoryHeaps[heap].size;
  if (!has_budget) return {total - std::min(total, memory->reserved()), total};
  const uint64_t allowed = budget.heapBudget[heap], used = budget.heapUsage[heap];
  return {allowed - std::min(allowed, used), total};
}

}  // namespace dspark::vulkan
