/// Copies between the host's memory and a device's, of any size.
#pragma once

#include <cstdint>

#include "device.h"

namespace dspark::vulkan {

/// Throws where a place has fewer bytes than are to be copied.
void CheckRoom(const Device& device, const Place& place, uint64_t size);

/// Returns when the bytes were read; the device has them before any command that comes later.
void CopyToDevice(Device& device, VkDeviceAddress to, const void* from, uint64_t size);

/// Returns when the bytes are there.
void CopyToHost(Device& device, void* to, VkDeviceAddress from, uint64_t size);

/// Between places of one device, in order with its other commands.
void CopyWithin(Device& device, VkDeviceAddress to, VkDeviceAddress from, uint64_t size);

/// Waits for the timeline to come to a number, letting others work on the device meanwhile. The mutex is not held.
void WaitFor(Device& device, uint64_t value);

/// Waits for all that was put on the device. The mutex is not held.
void SynchronizeDevice(Device& device);

}  // namespace dspark::vulkan
