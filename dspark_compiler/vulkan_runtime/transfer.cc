#include "transfer.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>

namespace dspark::vulkan {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{32} << 20;

}  // namespace

void CheckRoom(const Device& device, const Place& place, uint64_t size) {
  if (size <= place.rest) return;
  device.Refuse("a copy of " + std::to_string(size) + " bytes, where the memory has " + std::to_string(place.rest));
}

void CopyToDevice(Device& device, VkDeviceAddress to, const void* from, uint64_t size) {
  for (uint64_t done = 0; done < size; done += kPieceBytes) {
    const uint64_t part = std::min(kPieceBytes, size - done);
    uint64_t sent = 0;
    {
      std::lock_guard<std::mutex> lock(device.mutex);
      const Place place = device.memory->Find(to + done);
      CheckRoom(device, place, part);
      const Piece staging = device.memory->Allocate(part, MemoryKind::kHost);
      std::memcpy(staging.mapped(), static_cast<const char*>(from) + done, part);
      device.stream->Copy(place, 0, device.memory->FindAnywhere(reinterpret_cast<uint64_t>(staging.mapped())), 0, part, 1);
      device.stream->ReleaseLater(staging.address());
      if (done + part < size) sent = device.stream->Mark();
    }
    if (sent != 0) WaitFor(device, sent);  // so that a large tensor is not staged as a whole
  }
}

void CopyToHost(Device& device, void* to, VkDeviceAddress from, uint64_t size) {
  for (uint64_t done = 0; done < size; done += kPieceBytes) {
    const uint64_t part = std::min(kPieceBytes, size - done);
    Piece staging;
    uint64_t copied = 0;
    {
      std::lock_guard<std::mutex> lock(device.mutex);
      if (device.stream->recording()) device.Refuse("a copy to the host cannot be recorded");
      const Place place = device.memory->Find(from + done);
      CheckRoom(device, place, part);
      staging = device.memory->Allocate(part, MemoryKind::kHost);
      device.stream->Copy(device.memory->FindAnywhere(reinterpret_cast<uint64_t>(staging.mapped())), 0, place, 0, part, 1);
      copied = device.stream->Mark();
    }
    WaitFor(device, copied);
    std::memcpy(static_cast<char*>(to) + done, staging.mapped(), part);
    std::lock_guard<std::mutex> lock(device.mutex);
    device.memory->Release(staging.address());
  }
}

void CopyWithin(Device& device, VkDeviceAddress to, VkDeviceAddress from, uint64_t size) {
  if (to == from) return;
  std::lock_guard<std::mutex> lock(device.mutex);
  const Place target = device.memory->Find(to), source = device.memory->Find(from);
  CheckRoom(device, target, size);
  CheckRoom(device, source, size);
  device.stream->Copy(target, 0, source, 0, size, 1);
}

void WaitFor(Device& device, uint64_t value) {
  {
    std::lock_guard<std::mutex> lock(device.mutex);
    device.stream->Reach(value);
  }
  const VkSemaphore timeline = device.stream->timeline();
  VkSemaphoreWaitInfo wait{VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO};
  wait.semaphoreCount = 1;
  wait.pSemaphores = &timeline;
  wait.pValues = &value;
  const VkResult result = device.functions.WaitSemaphores(device.handle, &wait, UINT64_MAX);
  std::lock_guard<std::mutex> lock(device.mutex);
  device.Check(result, "vkWaitSemaphores");
  device.stream->Retire();
  device.CheckWaits();
}

void SynchronizeDevice(Device& device) {
  uint64_t last = 0;
  {
    std::lock_guard<std::mutex> lock(device.mutex);
    last = device.stream->Mark();
  }
  if (last != 0) WaitFor(device, last);
}

}  // namespace dspark::vulkan
