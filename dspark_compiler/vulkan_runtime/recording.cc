// Recordings: commands that are remembered, and replayed as a whole.
#include <utility>

#include "device.h"
#include "stream.h"

namespace dspark::vulkan {

void Stream::BeginRecording() {
  if (recording_ != nullptr) device_.Refuse("commands are being recorded already");
  Submit();
  auto commands = std::make_shared<Commands>();
  // It may be put here again before it has ended.
  Begin(commands.get(), VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT);
  recording_ = std::move(commands);
  order_.Forget();
  Barrier(recording_->buffer);  // whatever comes before it
}

uint64_t Stream::EndRecording() {
  if (recording_ == nullptr) device_.Refuse("no commands are being recorded");
  auto commands = std::exchange(recording_, nullptr);
  order_.Forget();  // what is put here next does not know what came before the recording
  device_.Check(device_.functions.EndCommandBuffer(commands->buffer), "vkEndCommandBuffer");
  recordings_[++recordings_made_] = std::move(commands);
  return recordings_made_;
}

void Stream::AbandonRecording() {
  if (recording_ == nullptr) return;
  auto commands = std::exchange(recording_, nullptr);
  order_.Forget();
  if (device_.functions.EndCommandBuffer(commands->buffer) == VK_SUCCESS) Recycle(commands.get());
}

void Stream::Put(uint64_t recording) {
  auto found = recordings_.find(recording);
  if (found == recordings_.end()) device_.Refuse("a recording that does not exist is to be replayed");
  Close();
  batch_.order.push_back(found->second->buffer);
  order_.Forget();
}

void Stream::Replay(uint64_t recording) {
  Mark();  // whoever waits for what came before does not wait for this
  Put(recording);
  Submit();
}

void Stream::Forget(uint64_t recording) {
  auto found = recordings_.find(recording);
  if (found == recordings_.end()) return;
  std::shared_ptr<Commands> commands = std::move(found->second);
  recordings_.erase(found);
  if (device_.lost()) return;
  Synchronize();  // it may be running
  Recycle(commands.get());
}

}  // namespace dspark::vulkan
