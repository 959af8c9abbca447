/// The one queue of a device: commands are recorded, submitted in batches, and waited for by numbers that grow.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernel.h"
#include "memory.h"
#include "order.h"
#include "pipeline.h"

namespace dspark::vulkan {

/// Some recorded commands and what has to live as long as they may run.
struct Commands {
  VkCommandBuffer buffer = VK_NULL_HANDLE;
  std::vector<std::shared_ptr<const Pipeline>> pipelines;
  std::vector<VkDeviceAddress> memory;  // to be released after them
  Piece arguments;                      // for blocks that are too long to be pushed
  VkDeviceSize arguments_used = 0;
};

/// So many bytes from one place to another.
struct Transfer {
  Place to;
  Place from;
  VkDeviceSize size;
};

/// Commands of one submission; all are over when the timeline has come to ``value``.
struct Batch {
  std::vector<VkCommandBuffer> order;
  std::vector<Commands> own;
  uint64_t value = 0;
};

/// Everything happens in the order it is put here; barriers stand where one command depends on another.
class Stream {
 public:
  explicit Stream(Device& device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  /// One kernel; ``block`` are its arguments.
  void Launch(const Kernel& kernel, const std::shared_ptr<Pipeline>& pipeline, const void* block,
              const std::array<uint32_t, 3>& groups, const std::vector<Use>& uses);

  /// Copies ``rows`` pieces of ``row`` bytes, so many bytes apart on each side.
  void Copy(const Place& to, VkDeviceSize to_pitch, const Place& from, VkDeviceSize from_pitch, VkDeviceSize row,
            uint32_t rows);

  /// Copies whole pieces, none of which another one of them touches where it writes: nothing stands between them.
  void CopyAll(const std::vector<Transfer>& transfers);

  /// Zeroes ``size`` bytes, rounded up to a multiple of 4.
  void Zero(const Place& to, VkDeviceSize size);

  /// Writes the time to a query after all that was put here before is over.
  void Stamp(VkQueryPool pool, uint32_t query);

  /// Releases memory when all that was put here so far is over.
  void ReleaseLater(VkDeviceAddress address);

  /// Keeps a pipeline that nothing will use any more until all that was put here so far is over.
  void KeepUntilDone(std::shared_ptr<const Pipeline> pipeline);

  /// The number the timeline comes to when all that was put here so far is over.
  uint64_t Mark();

  /// Sends what was recorded to the device.
  void Submit();

  /// Submits what has to be for the timeline to come to a number. Then whoever has let go of the mutex may wait.
  void Reach(uint64_t value);

  /// Frees what commands up to the timeline's number needed.
  void Retire();

  /// Submits all, waits and retires.
  void Synchronize();

  VkSemaphore timeline() const { return timeline_; }

  /// From now on commands are remembered instead of done.
  void BeginRecording();

  /// What was remembered, under a number; it can be replayed any number of times.
  uint64_t EndRecording();

  /// Forgets what was remembered.
  void AbandonRecording();

  /// Puts all of a recording here.
  void Put(uint64_t recording);

  /// The same, and sends it to the device.
  void Replay(uint64_t recording);

  /// Forgets a recording; what was replayed of it still ends.
  void Forget(uint64_t recording);

  bool recording() const { return recording_ != nullptr; }

 private:
  Commands& Open();
  void Close();
  void Begin(Commands* commands, VkCommandBufferUsageFlags flags);
  void Await(const Use* uses, size_t count);
  void Barrier(VkCommandBuffer buffer);
  void ShowHost(VkCommandBuffer buffer);
  VkDeviceAddress PutArguments(Commands* commands, const void* block, uint32_t bytes);
  void Recycle(Commands* commands);

  Device& device_;
  VkCommandPool pool_ = VK_NULL_HANDLE;
  VkSemaphore timeline_ = VK_NULL_HANDLE;
  std::vector<VkCommandBuffer> spare_;
  Commands open_;  // without a buffer: nothing is being recorded
  Batch batch_;    // what comes after the last mark
  std::vector<Batch> ready_;
  std::deque<Batch> running_;
  uint64_t marked_ = 0;
  uint64_t submitted_ = 0;
  uint32_t dispatches_ = 0;  // since the last submission
  Order order_;
  std::shared_ptr<Commands> recording_;
  std::unordered_map<uint64_t, std::shared_ptr<Commands>> recordings_;
  uint64_t recordings_made_ = 0;
};

}  // namespace dspark::vulkan
