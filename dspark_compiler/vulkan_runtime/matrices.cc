#include "matrices.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "loader.h"

namespace dspark::vulkan {
namespace {

constexpr uint32_t kSide = 16;

bool IsOurs(const VkCooperativeMatrixPropertiesKHR& shape, uint32_t columns) {
  return shape.MSize == kSide && shape.NSize == columns && shape.KSize == kSide &&
         shape.AType == VK_COMPONENT_TYPE_FLOAT16_KHR && shape.BType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
         shape.CType == VK_COMPONENT_TYPE_FLOAT32_KHR && shape.ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
         shape.scope == VK_SCOPE_SUBGROUP_KHR;
}

}  // namespace

bool OffersMatrices(const InstanceFunctions& functions, VkPhysicalDevice device, uint32_t columns) {
  const auto ask = functions.GetPhysicalDeviceCooperativeMatrixPropertiesKHR;
  uint32_t count = 0;
  if (ask == nullptr || ask(device, &count, nullptr) != VK_SUCCESS) return false;
  VkCooperativeMatrixPropertiesKHR empty{};
  empty.sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR;
  std::vector<VkCooperativeMatrixPropertiesKHR> shapes(count, empty);
  if (ask(device, &count, shapes.data()) != VK_SUCCESS) return false;
  shapes.resize(count);
  for (const VkCooperativeMatrixPropertiesKHR& shape : shapes) {
    if (IsOurs(shape, columns)) return true;
  }
  return false;
}

bool WantsMatrices() {
  const char* value = std::getenv("DSPARK_VULKAN_MATRICES");
  return value == nullptr || std::strcmp(value, "0") != 0;
}

}  // namespace dspark::vulkan
