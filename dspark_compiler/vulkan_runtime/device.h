/// One logical device: memory, a stream of commands, and pipelines.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "capabilities.h"
#include "clock.h"
#include "memory.h"
#include "pipeline.h"
#include "stream.h"

namespace dspark::vulkan {

/// Made at its first use. Whoever calls memory, stream or pipelines holds the mutex.
class Device {
 public:
  Device(const Instance& instance, int index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  /// Throws unless the call succeeded, naming device and driver. A device that was lost stays lost.
  void Check(VkResult result, const char* call);

  /// Throws an error of this device.
  [[noreturn]] void Refuse(const std::string& message) const;

  /// Whether nothing can be done with it any more.
  bool lost() const { return lost_; }

  /// Throws where a kernel has waited in vain since this was asked last.
  void CheckWaits() const;

  /// Throws where the device was lost before.
  void CheckAlive() const;

  void ReadMemoryTypes(VkPhysicalDeviceMemoryProperties* properties) const;

  /// Bytes of device-local memory: free as far as the driver says, and all.
  std::pair<uint64_t, uint64_t> MemoryBytes() const;

  const int index;
  Capabilities capabilities;
  DeviceFunctions functions;
  VkDevice handle = VK_NULL_HANDLE;
  VkPhysicalDevice physical = VK_NULL_HANDLE;
  VkQueue queue = VK_NULL_HANDLE;
  std::mutex mutex;
  std::unique_ptr<Memory> memory;
  std::unique_ptr<Pipelines> pipelines;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Clock> clock;
  Piece given_up;  // a word that kernels set which have waited in vain for what others publish
  int64_t frees = 0;  // how often TVM has given memory back, which recordings may have the addresses of

 private:
  const InstanceFunctions& instance_;
  bool lost_ = false;
};

}  // namespace dspark::vulkan
