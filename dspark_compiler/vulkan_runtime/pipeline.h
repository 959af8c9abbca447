/// Compute pipelines of one device, and the file in which the driver keeps what it compiled.
#pragma once

#include <memory>
#include <string>
#include <unordered_set>

#include "kernel.h"
#include "loader.h"

namespace dspark::vulkan {

class Device;
class Pipelines;

/// Goes with the last of module, commands and recordings that uses it, or with its device.
class Pipeline {
 public:
  Pipeline(Pipelines& owner, VkPipeline handle);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  VkPipeline handle() const { return handle_; }

 private:
  friend class Pipelines;
  Pipelines* owner_;  // null once the device is gone
  VkPipeline handle_;
};

class Pipelines {
 public:
  explicit Pipelines(Device& device);
  ~Pipelines();
  Pipelines(const Pipelines&) = delete;
  Pipelines& operator=(const Pipelines&) = delete;

  /// Throws, naming kernel, device and driver, where the device lacks what it needs or the driver refuses it.
  std::shared_ptr<Pipeline> Create(const Kernel& kernel);

  /// Writes the driver's cache beside the user's other caches, if anything was compiled since the last time.
  /// A cache that cannot be written is done without.
  void Save();

  /// All kernels have it: no descriptors, their arguments are pushed.
  VkPipelineLayout layout() const { return layout_; }

 private:
  friend class Pipeline;
  void Require(const Kernel& kernel) const;
  std::string Missing(const Kernel& kernel) const;
  void Destroy(Pipeline* pipeline);

  Device& device_;
  std::string file_;  // empty: nothing is kept
  VkPipelineCache cache_ = VK_NULL_HANDLE;
  VkPipelineLayout layout_ = VK_NULL_HANDLE;
  std::unordered_set<Pipeline*> alive_;
  bool changed_ = false;
};

}  // namespace dspark::vulkan
