#include "capabilities.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "errors.h"

namespace dspark::vulkan {
namespace {

constexpr uint32_t kMatrixSubgroup = 32;  // invocations that hold a matrix together in our kernels

// Extensions that are used where they are.
constexpr const char* kOptional[] = {
    VK_EXT_MEMORY_BUDGET_EXTENSION_NAME,           VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME,
    VK_EXT_SHADER_ATOMIC_FLOAT_EXTENSION_NAME,     VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME,
    VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME,      VK_KHR_MAINTENANCE_4_EXTENSION_NAME,
};

std::set<std::string> Extensions(const InstanceFunctions& functions, VkPhysicalDevice device) {
  uint32_t count = 0;
  functions.EnumerateDeviceExtensionProperties(device, nullptr, &count, nullptr);
  std::vector<VkExtensionProperties> all(count);
  functions.EnumerateDeviceExtensionProperties(device, nullptr, &count, all.data());
  std::set<std::string> found;
  for (const VkExtensionProperties& extension : all) {
    for (const char* name : kOptional) {
      if (std::string(name) == extension.extensionName) found.insert(name);
    }
  }
  return found;
}

/// The family whose work disturbs nothing else: one that computes without drawing, else any that computes.
bool FindQueue(const InstanceFunctions& functions, VkPhysicalDevice device, Capabilities* found) {
  uint32_t count = 0;
  functions.GetPhysicalDeviceQueueFamilyProperties(device, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  functions.GetPhysicalDeviceQueueFamilyProperties(device, &count, families.data());
  bool any = false;
  for (uint32_t i = 0; i < count; ++i) {
    const VkQueueFlags flags = families[i].queueFlags;
    if ((flags & VK_QUEUE_COMPUTE_BIT) == 0) continue;
    const bool draws = (flags & VK_QUEUE_GRAPHICS_BIT) != 0;
    if (any && draws) continue;
    any = true;
    found->queue_family = i;
    found->timestamp_bits = families[i].timestampValidBits;
    if (!draws) break;
  }
  return any;
}

void NameFeatures(const FeatureChain& has, const VkPhysicalDeviceSubgroupProperties& subgroup,
                  std::set<std::string>* names) {
  auto add = [names](const char* name, bool there) {
    if (there) names->insert(name);
  };
  add("float16", has.v12.shaderFloat16);
  add("int8", has.v12.shaderInt8);
  add("int16", has.core.features.shaderInt16);
  add("int64", has.core.features.shaderInt64);
  add("float64", has.core.features.shaderFloat64);
  add("storage16", has.v11.storageBuffer16BitAccess);
  add("storage8", has.v12.storageBuffer8BitAccess);
  add("atomic_float32_add", has.atomic_float.shaderBufferFloat32AtomicAdd);
  add("atomic_int64", has.v12.shaderBufferInt64Atomics);
  add("integer_dot", has.integer_dot.shaderIntegerDotProduct);
  add("memory_model", has.v12.vulkanMemoryModel && has.v12.vulkanMemoryModelDeviceScope);
  if ((subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) == 0) return;
  const VkSubgroupFeatureFlags operations = subgroup.supportedOperations;
  add("subgroup_basic", operations & VK_SUBGROUP_FEATURE_BASIC_BIT);
  add("subgroup_vote", operations & VK_SUBGROUP_FEATURE_VOTE_BIT);
  add("subgroup_ballot", operations & VK_SUBGROUP_FEATURE_BALLOT_BIT);
  add("subgroup_shuffle", operations & VK_SUBGROUP_FEATURE_SHUFFLE_BIT);
  add("subgroup_shuffle_relative", operations & VK_SUBGROUP_FEATURE_SHUFFLE_RELATIVE_BIT);
  add("subgroup_arithmetic", operations & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT);
}

/// What is enabled: whatever a kernel may use. Robust access and the like stay off, for they cost time.
void Choose(const FeatureChain& has, FeatureChain* enabled) {
  VkPhysicalDeviceFeatures& core = enabled->core.features;
  core.shaderInt16 = has.core.features.shaderInt16;
  core.shaderInt64 = has.core.features.shaderInt64;
  core.shaderFloat64 = has.core.features.shaderFloat64;
  enabled->v11.storageBuffer16BitAccess = has.v11.storageBuffer16BitAccess;
  VkPhysicalDeviceVulkan12Features& v12 = enabled->v12;
  v12.bufferDeviceAddress = VK_TRUE;
  v12.timelineSemaphore = VK_TRUE;
  v12.scalarBlockLayout = has.v12.scalarBlockLayout;
  v12.shaderFloat16 = has.v12.shaderFloat16;
  v12.shaderInt8 = has.v12.shaderInt8;
  v12.storageBuffer8BitAccess = has.v12.storageBuffer8BitAccess;
  v12.shaderBufferInt64Atomics = has.v12.shaderBufferInt64Atomics;
  v12.shaderSubgroupExtendedTypes = has.v12.shaderSubgroupExtendedTypes;
  v12.vulkanMemoryModel = has.v12.vulkanMemoryModel;
  v12.vulkanMemoryModelDeviceScope = has.v12.vulkanMemoryModelDeviceScope;
  enabled->maintenance4.maintenance4 = has.maintenance4.maintenance4;
  enabled->subgroup_size.subgroupSizeControl = has.subgroup_size.subgroupSizeControl;
  enabled->subgroup_size.computeFullSubgroups = has.subgroup_size.computeFullSubgroups;
  enabled->atomic_float.shaderBufferFloat32AtomicAdd = has.atomic_float.shaderBufferFloat32AtomicAdd;
  enabled->integer_dot.shaderIntegerDotProduct = has.integer_dot.shaderIntegerDotProduct;
  enabled->cooperative_matrix.cooperativeMatrix = has.cooperative_matrix.cooperativeMatrix;
}

}  // namespace

void FeatureChain::Link(const std::set<std::string>& extensions) {
  core.pNext = &v11;
  v11.pNext = &v12;
  void** next = &v12.pNext;
  auto link = [&](auto* structure, const char* extension) {
    if (extensions.count(extension) == 0) return;
    *next = structure;
    next = &structure->pNext;
  };
  link(&maintenance4, VK_KHR_MAINTENANCE_4_EXTENSION_NAME);
  link(&subgroup_size, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME);
  link(&atomic_float, VK_EXT_SHADER_ATOMIC_FLOAT_EXTENSION_NAME);
  link(&integer_dot, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
  link(&cooperative_matrix, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME);
}

std::string Title(const Capabilities& capabilities, int index) {
  return "Vulkan device " + std::to_string(index) + " (" + capabilities.name + ", " + capabilities.driver + ")";
}

bool Overlaps(const Capabilities& capabilities) {
  const char* value = std::getenv("DSPARK_VULKAN_OVERLAP");
  return value == nullptr ? capabilities.starts_in_order : std::strcmp(value, "0") != 0;
}

Capabilities Probe(const InstanceFunctions& functions, VkPhysicalDevice device, int index, FeatureChain* enabled) {
  Capabilities found;
  VkPhysicalDeviceSubgroupSizeControlProperties sizes{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
  VkPhysicalDeviceMaintenance3Properties maintenance{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
  VkPhysicalDeviceSubgroupProperties subgroup{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
  VkPhysicalDeviceDriverProperties driver{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
  VkPhysicalDeviceMaintenance4Properties buffers{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES};
  VkPhysicalDeviceProperties2 properties{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, &driver};
  found.extensions = Extensions(functions, device);
  driver.pNext = &subgroup;
  subgroup.pNext = &maintenance;
  void** next = &maintenance.pNext;
  if (found.extensions.count(VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME) != 0) {
    *next = &sizes;
    next = &sizes.pNext;
  }
  if (found.extensions.count(VK_KHR_MAINTENANCE_4_EXTENSION_NAME) != 0) *next = &buffers;
  functions.GetPhysicalDeviceProperties2(device, &properties);
  found.properties = properties.properties;
  found.name = properties.properties.deviceName;
  found.driver = driver.driverName[0] != '\0' ? std::string(driver.driverName) + " " + driver.driverInfo : "old driver";
  found.max_allocation = maintenance.maxMemoryAllocationSize;
  if (buffers.maxBufferSize != 0) found.max_allocation = std::min(found.max_allocation, buffers.maxBufferSize);
  found.subgroup_size = subgroup.subgroupSize;
  found.has_memory_budget = found.extensions.count(VK_EXT_MEMORY_BUDGET_EXTENSION_NAME) != 0;

  const std::string title = Title(found, index);
  const uint32_t version = found.properties.apiVersion;
  if (version < VK_API_VERSION_1_2) {
    Fail(title + ": offers Vulkan " + std::to_string(VK_API_VERSION_MAJOR(version)) + "." +
         std::to_string(VK_API_VERSION_MINOR(version)) + ", 1.2 is needed; install a newer driver");
  }
  FeatureChain has;
  has.Link(found.extensions);
  functions.GetPhysicalDeviceFeatures2(device, &has.core);
  if (!has.v12.bufferDeviceAddress || !has.v12.timelineSemaphore) {
    Fail(title + ": lacks " + (has.v12.timelineSemaphore ? "buffer device addresses" : "timeline semaphores") +
         ", which are needed; install a newer driver or use another device");
  }
  if (!FindQueue(functions, device, &found)) Fail(title + ": has no queue that computes; use another device");
  if (has.subgroup_size.subgroupSizeControl && (sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT)) {
    found.min_subgroup_size = sizes.minSubgroupSize;
    found.max_subgroup_size = sizes.maxSubgroupSize;
  }
  // Vulkan promises nothing of the kind. This driver's devices were tried; others may be added once they have been.
  found.starts_in_order = driver.driverID == VK_DRIVER_ID_NVIDIA_PROPRIETARY;
  found.has_full_subgroups = has.subgroup_size.computeFullSubgroups;
  NameFeatures(has, subgroup, &found.features);
  const bool wide = found.subgroup_size == kMatrixSubgroup ||
                    (found.min_subgroup_size <= kMatrixSubgroup && kMatrixSubgroup <= found.max_subgroup_size);
  for (const uint32_t columns : kMatrixColumns) {
    if (wide && has.cooperative_matrix.cooperativeMatrix && found.Has("memory_model") &&
        OffersMatrices(functions, device, columns)) {
      found.features.insert(MatrixFeature(columns));
    }
  }
  enabled->Link(found.extensions);
  Choose(has, enabled);
  return found;
}

}  // namespace dspark::vulkan
