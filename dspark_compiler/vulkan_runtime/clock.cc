#include "clock.h"

#include "device.h"

namespace dspark::vulkan {
namespace {

constexpr uint32_t kRemembered = 64;

}  // namespace

Clock::Clock(Device& device) : device_(device) {
  VkQueryPoolCreateInfo info{VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO};
  info.queryType = VK_QUERY_TYPE_TIMESTAMP;
  info.queryCount = kRemembered;
  device_.Check(device_.functions.CreateQueryPool(device_.handle, &info, nullptr, &pool_), "vkCreateQueryPool");
}

Clock::~Clock() { device_.functions.DestroyQueryPool(device_.handle, pool_, nullptr); }

uint64_t Clock::Stamp() {
  if (device_.capabilities.timestamp_bits == 0) device_.Refuse("has no clock that commands could be timed by");
  device_.stream->Stamp(pool_, static_cast<uint32_t>(stamps_ % kRemembered));
  return stamps_++;
}

uint64_t Clock::Read(uint64_t stamp) const {
  if (stamp >= stamps_ || stamp + kRemembered < stamps_) device_.Refuse("a time that is not remembered is asked for");
  uint64_t ticks = 0;
  const VkResult result = device_.functions.GetQueryPoolResults(
      device_.handle, pool_, static_cast<uint32_t>(stamp % kRemembered), 1, sizeof(ticks), &ticks, sizeof(ticks),
      VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT);
  device_.Check(result, "vkGetQueryPoolResults");
  return ticks;
}

double Clock::Nanoseconds(uint64_t first, uint64_t last) const {
  const uint32_t bits = device_.capabilities.timestamp_bits;
  const uint64_t mask = bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
  const uint64_t ticks = (Read(last) - Read(first)) & mask;
  return static_cast<double>(ticks) * device_.capabilities.properties.limits.timestampPeriod;
}

}  // namespace dspark::vulkan
