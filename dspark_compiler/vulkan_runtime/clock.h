/// The device's clock, put between commands.
#pragma once

#include <cstdint>

#include "loader.h"

namespace dspark::vulkan {

class Device;

class Clock {
 public:
  explicit Clock(Device& device);
  ~Clock();
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

  /// Has the time noted when all that was put on the stream before is over; the last 64 are remembered.
  uint64_t Stamp();

  /// Nanoseconds between two stamps that have come to pass. Throws where one is forgotten.
  double Nanoseconds(uint64_t first, uint64_t last) const;

 private:
  uint64_t Read(uint64_t stamp) const;

  Device& device_;
  VkQueryPool pool_ = VK_NULL_HANDLE;
  uint64_t stamps_ = 0;
};

}  // namespace dspark::vulkan
