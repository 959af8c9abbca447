#include "memory.h"

#include <algorithm>

#include "device.h"
#include "errors.h"

namespace dspark::vulkan {
namespace {

constexpr VkDeviceSize kAlignment = 256;
constexpr VkDeviceSize kBlockBytes = VkDeviceSize{64} << 20;
constexpr VkDeviceSize kSharedBytes = VkDeviceSize{16} << 20;  // pieces up to this size share a block
constexpr VkDeviceSize kSmallBlockBytes = VkDeviceSize{1} << 20;

VkDeviceSize Padded(VkDeviceSize size) { return (std::max<VkDeviceSize>(size, 1) + kAlignment - 1) / kAlignment * kAlignment; }

std::string Megabytes(uint64_t bytes) {
  const uint64_t tenths = bytes / 100000;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " MB";
}

}  // namespace

Memory::Memory(Device& device) : device_(device) {
  device_.ReadMemoryTypes(&properties_);
}

Memory::~Memory() {
  for (auto& block : blocks_) Destroy(block.get());
}

Piece Memory::Allocate(uint64_t size, MemoryKind kind) {
  const VkDeviceSize padded = Padded(size);
  if (size > device_.capabilities.max_allocation) {
    device_.Refuse("a buffer of " + Megabytes(size) + " was asked for, the driver allows " +
                   Megabytes(device_.capabilities.max_allocation));
  }
  Piece piece;
  if (padded <= kSharedBytes) {
    for (auto& block : blocks_) {
      if (block->kind == kind && Cut(block.get(), padded, &piece)) break;
    }
  }
  if (piece.block == nullptr) {
    const VkDeviceSize shared = kind == MemoryKind::kDevice ? kBlockBytes : std::max(kSmallBlockBytes, padded);
    Cut(Reserve(padded <= kSharedBytes ? shared : padded, kind), padded, &piece);
  }
  pieces_[piece.address()] = piece;
  if (piece.block->mapped != nullptr) mapped_[piece.mapped()] = piece.address();
  return piece;
}

bool Memory::Cut(Block* block, VkDeviceSize size, Piece* piece) {
  for (auto range = block->free.begin(); range != block->free.end(); ++range) {
    const auto [offset, length] = *range;
    if (length < size) continue;
    block->free.erase(range);
    if (length > size) block->free[offset + size] = length - size;
    *piece = Piece{block, offset, size};
    return true;
  }
  return false;
}

void Memory::Release(VkDeviceAddress address) {
  const Piece piece = At(address);
  Block* block = piece.block;
  if (block->mapped != nullptr) mapped_.erase(piece.mapped());
  pieces_.erase(address);
  auto range = block->free.emplace(piece.offset, piece.size).first;
  auto next = std::next(range);
  if (next != block->free.end() && range->first + range->second == next->first) {
    range->second += next->second;
    block->free.erase(next);
  }
  if (range != block->free.begin()) {
    auto previous = std::prev(range);
    if (previous->first + previous->second == range->first) {
      previous->second += range->second;
      block->free.erase(range);
    }
  }
  // A shared block of the device stays for the next pieces, a large or a mapped one goes.
  const bool unused = block->free.size() == 1 && block->free.begin()->second == block->size;
  if (!unused || (block->kind == MemoryKind::kDevice && block->size == kBlockBytes)) return;
  Destroy(block);
  blocks_.erase(std::find_if(blocks_.begin(), blocks_.end(), [&](auto& other) { return other.get() == block; }));
}

const Piece& Memory::At(VkDeviceAddress address) const {
  auto found = pieces_.find(address);
  if (found == pieces_.end()) device_.Refuse("no memory of this device begins at the address given");
  return found->second;
}

Place Memory::Find(VkDeviceAddress address) const {
  auto after = pieces_.upper_bound(address);
  if (after != pieces_.begin()) {
    const auto& [begin, piece] = *std::prev(after);
    const VkDeviceSize inside = address - begin;
    if (inside < piece.size) return Place{piece.block->buffer, piece.offset + inside, piece.size - inside, begin, false};
  }
  device_.Refuse("an address that is not in this device's memory; tensors of one call must be on one device");
}

Place Memory::FindAnywhere(uint64_t address) const {
  const char* pointer = reinterpret_cast<const char*>(address);
  auto after = mapped_.upper_bound(pointer);
  if (after != mapped_.begin()) {
    const auto& [begin, start] = *std::prev(after);
    const Piece& piece = pieces_.at(start);
    const VkDeviceSize inside = static_cast<VkDeviceSize>(pointer - begin);
    if (inside < piece.size) return Place{piece.block->buffer, piece.offset + inside, piece.size - inside, start, true};
  }
  return Find(address);
}

bool Memory::IsAmbiguous(const Block& block) const {
  auto meet = [](uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) { return a < b + b_size && b < a + a_size; };
  for (const auto& other : blocks_) {
    const uint64_t mine = reinterpret_cast<uint64_t>(block.mapped), its = reinterpret_cast<uint64_t>(other->mapped);
    if ((its != 0 && meet(block.address, block.size, its, other->size)) ||
        (mine != 0 && meet(mine, block.size, other->address, other->size))) {
      return true;
    }
  }
  return false;
}

uint32_t Memory::device_heap() const {
  return properties_.memoryTypes[TypeOf(MemoryKind::kDevice, ~uint32_t{0})].heapIndex;
}

uint32_t Memory::TypeOf(MemoryKind kind, uint32_t allowed) const {
  constexpr VkMemoryPropertyFlags kLocal = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
  constexpr VkMemoryPropertyFlags kMapped =
      VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  constexpr VkMemoryPropertyFlags kCached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
  VkMemoryPropertyFlags needed = 0, liked = 0, disliked = 0;
  switch (kind) {
    case MemoryKind::kDevice:
      // Where the host can reach memory of the device, that is a window of its own, not always as large or as fast.
      needed = kLocal, disliked = kMapped | kCached;
      break;
    case MemoryKind::kHost:
      needed = kMapped, liked = kCached, disliked = kLocal;
      break;
    case MemoryKind::kShared:
      needed = kMapped, liked = kLocal, disliked = kCached;
      break;
  }
  int best = -1;
  uint32_t chosen = 0;
  for (uint32_t i = 0; i < properties_.memoryTypeCount; ++i) {
    const VkMemoryPropertyFlags flags = properties_.memoryTypes[i].propertyFlags;
    if ((allowed >> i & 1) == 0 || (flags & needed) != needed) continue;
    const int score = 2 * ((flags & liked) == liked) + ((flags & disliked) == 0);
    if (score > best) best = score, chosen = i;
  }
  if (best < 0) device_.Refuse("has no memory that a buffer of the kind needed can lie in");
  return chosen;
}

Block* Memory::Reserve(VkDeviceSize size, MemoryKind kind) {
  auto block = std::make_unique<Block>();
  block->kind = kind;
  block->size = size;
  const DeviceFunctions& vk = device_.functions;
  VkBufferCreateInfo info{VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO};
  info.size = size;
  info.usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT |
               VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
  device_.Check(vk.CreateBuffer(device_.handle, &info, nullptr, &block->buffer), "vkCreateBuffer");
  VkMemoryRequirements requirements;
  vk.GetBufferMemoryRequirements(device_.handle, block->buffer, &requirements);
  VkMemoryAllocateFlagsInfo flags{VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO};
  flags.flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT;
  VkMemoryAllocateInfo allocation{VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, &flags};
  allocation.allocationSize = requirements.size;
  VkResult result = VK_SUCCESS;
  try {
    allocation.memoryTypeIndex = TypeOf(kind, requirements.memoryTypeBits);
    result = vk.AllocateMemory(device_.handle, &allocation, nullptr, &block->memory);
  } catch (...) {
    Destroy(block.get());
    throw;
  }
  if (result != VK_SUCCESS) {
    Destroy(block.get());
    if (result == VK_ERROR_DEVICE_LOST) device_.Check(result, "vkAllocateMemory");
    const auto [free, total] = device_.MemoryBytes();
    device_.Refuse("vkAllocateMemory: " + Describe(result) + "; " + Megabytes(size) + " were asked for, " +
                   Megabytes(free) + " of " + Megabytes(total) + " are free");
  }
  vk.BindBufferMemory(device_.handle, block->buffer, block->memory, 0);
  VkBufferDeviceAddressInfo where{VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO};
  where.buffer = block->buffer;
  block->address = vk.GetBufferDeviceAddress(device_.handle, &where);
  if (kind != MemoryKind::kDevice) {
    void* mapped = nullptr;
    result = vk.MapMemory(device_.handle, block->memory, 0, VK_WHOLE_SIZE, 0, &mapped);
    if (result != VK_SUCCESS) {
      Destroy(block.get());
      device_.Check(result, "vkMapMemory");
    }
    block->mapped = static_cast<char*>(mapped);
  } else {
    reserved_ += size;
    peak_ = std::max(peak_, reserved_);
  }
  block->free[0] = size;
  if (IsAmbiguous(*block)) {
    Destroy(block.get());
    device_.Refuse("the driver gave memory of the device an address that memory of the host has");
  }
  blocks_.push_back(std::move(block));
  return blocks_.back().get();
}

void Memory::Destroy(Block* block) {
  const DeviceFunctions& vk = device_.functions;
  vk.DestroyBuffer(device_.handle, block->buffer, nullptr);
  if (block->memory == VK_NULL_HANDLE) return;
  vk.FreeMemory(device_.handle, block->memory, nullptr);
  if (block->kind == MemoryKind::kDevice && block->address != 0) reserved_ -= block->size;
}

}  // namespace dspark::vulkan
