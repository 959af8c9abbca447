/// Cooperative matrices (VK_KHR_cooperative_matrix), and whether a device has those that kernels use.
#pragma once

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

// Headers older than 1.3.255 lack it; the numbers are those of the registry.
#ifndef VK_KHR_cooperative_matrix
#define VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME "VK_KHR_cooperative_matrix"
#define VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR static_cast<VkStructureType>(1000506000)
#define VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR static_cast<VkStructureType>(1000506001)
enum VkComponentTypeKHR { VK_COMPONENT_TYPE_FLOAT16_KHR = 0, VK_COMPONENT_TYPE_FLOAT32_KHR = 1 };
enum VkScopeKHR { VK_SCOPE_SUBGROUP_KHR = 3 };
struct VkPhysicalDeviceCooperativeMatrixFeaturesKHR {
  VkStructureType sType;
  void* pNext;
  VkBool32 cooperativeMatrix;
  VkBool32 cooperativeMatrixRobustBufferAccess;
};
struct VkCooperativeMatrixPropertiesKHR {
  VkStructureType sType;
  void* pNext;
  uint32_t MSize;
  uint32_t NSize;
  uint32_t KSize;
  int32_t AType;
  int32_t BType;
  int32_t CType;
  int32_t ResultType;
  VkBool32 saturatingAccumulation;
  int32_t scope;
};
typedef VkResult(VKAPI_PTR* PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)(
    VkPhysicalDevice physicalDevice, uint32_t* pPropertyCount, VkCooperativeMatrixPropertiesKHR* pProperties);
#endif

namespace dspark::vulkan {

struct InstanceFunctions;

/// Columns of the matrices that kernels use: of many rows of x, of few.
constexpr uint32_t kMatrixColumns[] = {16, 8};

/// The feature of a device that can do what OffersMatrices asks.
inline const char* MatrixFeature(uint32_t columns) {
  return columns == 16 ? "cooperative_matrix" : "cooperative_matrix_8";
}

/// Whether a subgroup can multiply 16 x 16 numbers of float16 by 16 x ``columns`` and sum up in float32; the device
/// knows the extension.
bool OffersMatrices(const InstanceFunctions& functions, VkPhysicalDevice device, uint32_t columns);

/// Whether kernels may use them; DSPARK_VULKAN_MATRICES=0 keeps to those without.
bool WantsMatrices();

}  // namespace dspark::vulkan
