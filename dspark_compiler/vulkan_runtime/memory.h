/// Memory: few large allocations, cut into pieces that are known by their addresses.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "loader.h"

namespace dspark::vulkan {

class Device;

enum class MemoryKind {
  kDevice,  // fastest for kernels; the host has no access
  kHost,    // of the host, mapped, cached: the device copies from and to it
  kShared,  // mapped, and near the device where there is such memory: small things kernels read once
};

/// One allocation of Vulkan's with one buffer over all of it.
struct Block {
  VkDeviceMemory memory = VK_NULL_HANDLE;
  VkBuffer buffer = VK_NULL_HANDLE;
  VkDeviceAddress address = 0;
  VkDeviceSize size = 0;
  char* mapped = nullptr;
  MemoryKind kind = MemoryKind::kDevice;
  std::map<VkDeviceSize, VkDeviceSize> free;  // offset to size, neighbours merged
};

/// A piece of a block that is in use.
struct Piece {
  Block* block = nullptr;
  VkDeviceSize offset = 0;
  VkDeviceSize size = 0;

  VkDeviceAddress address() const { return block->address + offset; }
  char* mapped() const { return block->mapped + offset; }
};

/// Where in which buffer an address lies; ``rest`` bytes follow it in its piece.
struct Place {
  VkBuffer buffer = VK_NULL_HANDLE;
  VkDeviceSize offset = 0;
  VkDeviceSize rest = 0;
  VkDeviceAddress piece = 0;  // where its piece begins, by which pieces are told apart
  bool mapped = false;        // the host reads and writes it, too
};

class Memory {
 public:
  explicit Memory(Device& device);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// A piece at a multiple of 256. Throws, with numbers, where it does not fit the device or one of its buffers.
  Piece Allocate(uint64_t size, MemoryKind kind);

  /// Takes a piece back at once: nothing submitted may use it any more.
  void Release(VkDeviceAddress address);

  /// What lies at a device address. Throws where nothing does.
  Place Find(VkDeviceAddress address) const;

  /// What lies at an address of the host, in mapped memory, or else at one of the device. Throws where nothing does.
  Place FindAnywhere(uint64_t address) const;

  /// The piece that begins at a device address.
  const Piece& At(VkDeviceAddress address) const;

  /// Number of the heap that kDevice is taken from.
  uint32_t device_heap() const;

  /// Bytes of kDevice that were taken from Vulkan, now and at most.
  uint64_t reserved() const { return reserved_; }
  uint64_t peak() const { return peak_; }

 private:
  Block* Reserve(VkDeviceSize size, MemoryKind kind);
  void Destroy(Block* block);
  uint32_t TypeOf(MemoryKind kind, uint32_t allowed) const;
  /// Whether an address could be one of the host as well as one of the device.
  bool IsAmbiguous(const Block& block) const;
  static bool Cut(Block* block, VkDeviceSize size, Piece* piece);

  Device& device_;
  VkPhysicalDeviceMemoryProperties properties_{};
  std::vector<std::unique_ptr<Block>> blocks_;
  std::map<VkDeviceAddress, Piece> pieces_;
  std::map<const char*, VkDeviceAddress> mapped_;  // where mapped pieces begin
  uint64_t reserved_ = 0;
  uint64_t peak_ = 0;
};

}  // namespace dspark::vulkan
