#include "stream.h"

#include <algorithm>
#include <cstring>

#include "device.h"

namespace dspark::vulkan {
namespace {

// A submission costs some microseconds of the host, a kernel one: the device starts soon and seldom waits.
constexpr uint32_t kSubmitAfter = 64;
constexpr VkDeviceSize kArgumentBytes = 64 << 10;
constexpr VkDeviceSize kArgumentAlignment = 64;

}  // namespace

Stream::Stream(Device& device) : device_(device), order_(Overlaps(device.capabilities)) {
  const DeviceFunctions& vk = device_.functions;
  VkCommandPoolCreateInfo pool{VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
  pool.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT;
  pool.queueFamilyIndex = device_.capabilities.queue_family;
  device_.Check(vk.CreateCommandPool(device_.handle, &pool, nullptr, &pool_), "vkCreateCommandPool");
  VkSemaphoreTypeCreateInfo type{VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO};
  type.semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE;
  VkSemaphoreCreateInfo semaphore{VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, &type};
  device_.Check(vk.CreateSemaphore(device_.handle, &semaphore, nullptr, &timeline_), "vkCreateSemaphore");
}

Stream::~Stream() {
  // The device is idle. Its memory goes as a whole; pipelines must go before their owner.
  const DeviceFunctions& vk = device_.functions;
  vk.DestroySemaphore(device_.handle, timeline_, nullptr);
  vk.DestroyCommandPool(device_.handle, pool_, nullptr);
}

void Stream::Begin(Commands* commands, VkCommandBufferUsageFlags flags) {
  device_.CheckAlive();
  const DeviceFunctions& vk = device_.functions;
  if (spare_.empty()) {
    VkCommandBufferAllocateInfo info{VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO};
    info.commandPool = pool_;
    info.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
    info.commandBufferCount = 1;
    VkCommandBuffer buffer;
    device_.Check(vk.AllocateCommandBuffers(device_.handle, &info, &buffer), "vkAllocateCommandBuffers");
    spare_.push_back(buffer);
  }
  VkCommandBufferBeginInfo begin{VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  begin.flags = flags;
  device_.Check(vk.BeginCommandBuffer(spare_.back(), &begin), "vkBeginCommandBuffer");
  commands->buffer = spare_.back();
  spare_.pop_back();
}

Commands& Stream::Open() {
  if (recording_ != nullptr) return *recording_;
  if (open_.buffer == VK_NULL_HANDLE) Begin(&open_, VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT);
  return open_;
}

void Stream::Close() {
  if (open_.buffer == VK_NULL_HANDLE) return;
  device_.Check(device_.functions.EndCommandBuffer(open_.buffer), "vkEndCommandBuffer");
  batch_.order.push_back(open_.buffer);
  batch_.own.push_back(std::exchange(open_, Commands()));
}

void Stream::Barrier(VkCommandBuffer buffer) {
  VkMemoryBarrier barrier{VK_STRUCTURE_TYPE_MEMORY_BARRIER};
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
                          VK_ACCESS_TRANSFER_WRITE_BIT;
  constexpr VkPipelineStageFlags kStages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
  device_.functions.CmdPipelineBarrier(buffer, kStages, kStages, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  order_.Clear();
}

void Stream::Await(const Use* uses, size_t count) {
  if (order_.Depends(uses, count)) Barrier(Open().buffer);
  order_.Note(uses, count);
}

VkDeviceAddress Stream::PutArguments(Commands* commands, const void* block, uint32_t bytes) {
  const VkDeviceSize padded = (bytes + kArgumentAlignment - 1) / kArgumentAlignment * kArgumentAlignment;
  if (commands->arguments.block == nullptr || commands->arguments_used + padded > commands->arguments.size) {
    commands->arguments = device_.memory->Allocate(std::max(kArgumentBytes, padded), MemoryKind::kShared);
    commands->memory.push_back(commands->arguments.address());
    commands->arguments_used = 0;
  }
  const VkDeviceSize offset = commands->arguments_used;
  commands->arguments_used += padded;
  std::memcpy(commands->arguments.mapped() + offset, block, bytes);
  return commands->arguments.address() + offset;
}

void Stream::Launch(const Kernel& kernel, const std::shared_ptr<Pipeline>& pipeline, const void* block,
                    const std::array<uint32_t, 3>& groups, const std::vector<Use>& uses) {
  const DeviceFunctions& vk = device_.functions;
  Commands& commands = Open();
  Await(uses.data(), uses.size());
  vk.CmdBindPipeline(commands.buffer, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline->handle());
  const VkPipelineLayout layout = device_.pipelines->layout();
  if (kernel.block_by_address) {
    const VkDeviceAddress address = PutArguments(&commands, block, kernel.block_bytes);
    vk.CmdPushConstants(commands.buffer, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof(address), &address);
  } else if (kernel.block_bytes != 0) {
    vk.CmdPushConstants(commands.buffer, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, (kernel.block_bytes + 3) / 4 * 4,
                        block);
  }
  vk.CmdDispatch(commands.buffer, groups[0], groups[1], groups[2]);
  if (commands.pipelines.empty() || commands.pipelines.back() != pipeline) commands.pipelines.push_back(pipeline);
  if (recording_ == nullptr && ++dispatches_ >= kSubmitAfter) Submit();
}

void Stream::Copy(const Place& to, VkDeviceSize to_pitch, const Place& from, VkDeviceSize from_pitch,
                  VkDeviceSize row, uint32_t rows) {
  if (row == 0 || rows == 0) return;
  const Use uses[] = {{to.piece, to.piece, Access::kWrite}, {from.piece, from.piece, Access::kRead}};
  Commands& commands = Open();
  Await(uses, 2);
  std::vector<VkBufferCopy> regions(rows);
  for (uint32_t i = 0; i < rows; ++i) regions[i] = {from.offset + i * from_pitch, to.offset + i * to_pitch, row};
  const DeviceFunctions& vk = device_.functions;
  vk.CmdCopyBuffer(commands.buffer, from.buffer, to.buffer, rows, regions.data());
  if (to.mapped) ShowHost(commands.buffer);
}

void Stream::CopyAll(const std::vector<Transfer>& transfers) {
  if (transfers.empty()) return;
  std::vector<Use> uses;
  for (const Transfer& each : transfers) {
    uses.push_back({each.to.piece, each.to.piece, Access::kWrite});
    uses.push_back({each.from.piece, each.from.piece, Access::kRead});
  }
  Commands& commands = Open();
  Await(uses.data(), uses.size());
  bool shown = false;
  for (const Transfer& each : transfers) {
    if (each.size == 0) continue;
    const VkBufferCopy region{each.from.offset, each.to.offset, each.size};
    device_.functions.CmdCopyBuffer(commands.buffer, each.from.buffer, each.to.buffer, 1, &region);
    shown |= each.to.mapped;
  }
  if (shown) ShowHost(commands.buffer);
}

void Stream::ShowHost(VkCommandBuffer buffer) {
  VkMemoryBarrier barrier{VK_STRUCTURE_TYPE_MEMORY_BARRIER};
  barrier.srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT | VK_ACCESS_SHADER_WRITE_BIT;  // the word of waits given up, too
  barrier.dstAccessMask = VK_ACCESS_HOST_READ_BIT;
  constexpr VkPipelineStageFlags kStages = VK_PIPELINE_STAGE_TRANSFER_BIT | VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
  device_.functions.CmdPipelineBarrier(buffer, kStages, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, nullptr, 0,
                                       nullptr);
}

void Stream::Zero(const Place& to, VkDeviceSize size) {
  if (size == 0) return;
  const Use use{to.piece, to.piece, Access::kWrite};
  Commands& commands = Open();
  Await(&use, 1);
  device_.functions.CmdFillBuffer(commands.buffer, to.buffer, to.offset, (size + 3) / 4 * 4, 0);
}

void Stream::Stamp(VkQueryPool pool, uint32_t query) {
  const DeviceFunctions& vk = device_.functions;
  Commands& commands = Open();
  Barrier(commands.buffer);
  vk.CmdResetQueryPool(commands.buffer, pool, query, 1);
  vk.CmdWriteTimestamp(commands.buffer, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, pool, query);
}

void Stream::ReleaseLater(VkDeviceAddress address) {
  order_.Release(address);
  if (device_.lost()) {
    device_.memory->Release(address);
    return;
  }
  Open().memory.push_back(address);
}

void Stream::KeepUntilDone(std::shared_ptr<const Pipeline> pipeline) {
  if (!device_.lost()) Open().pipelines.push_back(std::move(pipeline));
}

uint64_t Stream::Mark() {
  Close();
  if (!batch_.order.empty()) {
    batch_.value = ++marked_;
    ready_.push_back(std::exchange(batch_, Batch()));
  }
  return marked_;
}

void Stream::Submit() {
  device_.CheckAlive();
  Mark();
  if (ready_.empty()) return;
  std::vector<VkSubmitInfo> infos(ready_.size(), {VK_STRUCTURE_TYPE_SUBMIT_INFO});
  std::vector<VkTimelineSemaphoreSubmitInfo> values(ready_.size(), {VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO});
  for (size_t i = 0; i < ready_.size(); ++i) {
    values[i].signalSemaphoreValueCount = 1;
    values[i].pSignalSemaphoreValues = &ready_[i].value;
    infos[i].pNext = &values[i];
    infos[i].commandBufferCount = static_cast<uint32_t>(ready_[i].order.size());
    infos[i].pCommandBuffers = ready_[i].order.data();
    infos[i].signalSemaphoreCount = 1;
    infos[i].pSignalSemaphores = &timeline_;
  }
  const VkResult result =
      device_.functions.QueueSubmit(device_.queue, static_cast<uint32_t>(infos.size()), infos.data(), VK_NULL_HANDLE);
  device_.Check(result, "vkQueueSubmit");
  for (Batch& batch : ready_) {
    submitted_ = batch.value;
    running_.push_back(std::move(batch));
  }
  ready_.clear();
  dispatches_ = 0;
  Retire();
}

void Stream::Reach(uint64_t value) {
  if (value > submitted_) Submit();
}

void Stream::Retire() {
  uint64_t done = 0;
  device_.Check(device_.functions.GetSemaphoreCounterValue(device_.handle, timeline_, &done),
                "vkGetSemaphoreCounterValue");
  while (!running_.empty() && running_.front().value <= done) {
    for (Commands& commands : running_.front().own) Recycle(&commands);
    running_.pop_front();
  }
}

void Stream::Recycle(Commands* commands) {
  for (VkDeviceAddress address : commands->memory) device_.memory->Release(address);
  if (device_.functions.ResetCommandBuffer(commands->buffer, 0) == VK_SUCCESS) spare_.push_back(commands->buffer);
}

void Stream::Synchronize() {
  Submit();
  VkSemaphoreWaitInfo wait{VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO};
  wait.semaphoreCount = 1;
  wait.pSemaphores = &timeline_;
  wait.pValues = &submitted_;
  device_.Check(device_.functions.WaitSemaphores(device_.handle, &wait, UINT64_MAX), "vkWaitSemaphores");
  Retire();
}

}  // namespace dspark::vulkan
