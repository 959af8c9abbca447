/// The Vulkan instance: which devices there are, and the validation layers where they are asked for.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "loader.h"

namespace dspark::vulkan {

/// Messages of the validation layers: errors and warnings, in the order they came.
class ValidationLog {
 public:
  void Add(std::string message);
  std::vector<std::string> Take();

 private:
  std::mutex mutex_;
  std::vector<std::string> messages_;
};

class Instance {
 public:
  /// With DSPARK_VULKAN_VALIDATION=1 the Khronos layer checks every call; its messages go to stderr and the log.
  /// Throws where there is no loader, driver or layer.
  explicit Instance(ValidationLog* log);
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  InstanceFunctions functions;
  /// In the loader's order, which is what a device's number refers to.
  std::vector<VkPhysicalDevice> devices;

 private:
  Loader loader_;
  VkInstance handle_ = VK_NULL_HANDLE;
  VkDebugUtilsMessengerEXT messenger_ = VK_NULL_HANDLE;
};

}  // namespace dspark::vulkan
