/// What a physical device can do, and asking for all of it that kernels may use.
#pragma once

#include <set>
#include <string>

#include "instance.h"

namespace dspark::vulkan {

/// Feature structures linked as Vulkan wants them: asked for first, then handed back in part to enable that part.
struct FeatureChain {
  VkPhysicalDeviceFeatures2 core{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
  VkPhysicalDeviceVulkan11Features v11{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES};
  VkPhysicalDeviceVulkan12Features v12{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
  VkPhysicalDeviceMaintenance4Features maintenance4{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_FEATURES};
  VkPhysicalDeviceSubgroupSizeControlFeatures subgroup_size{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES};
  VkPhysicalDeviceShaderAtomicFloatFeaturesEXT atomic_float{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_ATOMIC_FLOAT_FEATURES_EXT};
  VkPhysicalDeviceShaderIntegerDotProductFeatures integer_dot{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES};
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR cooperative_matrix{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR};

  /// Links the structures that the extensions (or core versions) of a device know.
  void Link(const std::set<std::string>& extensions);
};

/// Numbers of one device.
struct Capabilities {
  std::string name;
  std::string driver;  // its name and version in the vendor's words
  VkPhysicalDeviceProperties properties{};
  uint32_t queue_family = 0;
  uint32_t timestamp_bits = 0;
  uint64_t max_allocation = 0;  // bytes of one buffer
  uint32_t subgroup_size = 0;
  uint32_t min_subgroup_size = 0;  // that a pipeline can ask for; 0 where it cannot ask
  uint32_t max_subgroup_size = 0;
  std::set<std::string> extensions;  // that will be enabled
  std::set<std::string> features;    // by the names that modules ask for them by
  bool has_memory_budget = false;
  bool has_full_subgroups = false;   // whether a pipeline can ask that no subgroup is cut short
  bool starts_in_order = false;      // whether a work group starts only when those of all launches before have started

  bool Has(const std::string& feature) const { return features.count(feature) != 0; }
};

/// Reads them; fills ``enabled`` with what a logical device should be made with.
/// Throws, naming device and driver, where something is missing that no kernel could do without.
Capabilities Probe(const InstanceFunctions& functions, VkPhysicalDevice device, int index, FeatureChain* enabled);

/// Whether launches may run beside those whose results they await: where they start in order, or somebody says so.
bool Overlaps(const Capabilities& capabilities);

/// "Vulkan device 0 (NAME, DRIVER)".
std::string Title(const Capabilities& capabilities, int index);

}  // namespace dspark::vulkan
