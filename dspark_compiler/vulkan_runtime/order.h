/// Where barriers stand: between commands of which one depends on the other, unless they see to it themselves.
#pragma once

#include <unordered_map>
#include <unordered_set>

#include "kernel.h"
#include "loader.h"

namespace dspark::vulkan {

/// How a command uses memory: the allocation it is in, and where in it.
struct Use {
  VkDeviceAddress piece;
  VkDeviceAddress address;
  Access access;
};

/// What commands have done since the last barrier.
///
/// Memory that was unset is handed on without barriers where the device starts launches in order: a launch that awaits
/// what one before it publishes runs beside it. Addresses in such memory are those of whole tensors, each published
/// once; whatever else is done with it is ordered like anything.
class Order {
 public:
  explicit Order(bool overlaps) : overlaps_(overlaps) {}

  /// Whether a barrier has to stand before a command with these uses.
  bool Depends(const Use* uses, size_t count);

  /// A command with these uses comes.
  void Note(const Use* uses, size_t count);

  /// A barrier stands.
  void Clear();

  /// Commands come in between that are not known here.
  void Forget();

  /// Memory is given back; what lies there next has not been unset.
  void Release(VkDeviceAddress piece);

 private:
  struct HandedOn {
    std::unordered_set<VkDeviceAddress> published;
    std::unordered_set<VkDeviceAddress> exchanged;  // since the last barrier
    bool pending = false;                           // something was done with it since the last barrier
  };

  HandedOn* Find(const Use& use);
  bool Depends(const Use& use);
  void Note(const Use& use);

  const bool overlaps_;
  bool all_touched_ = false;  // something unknown was written since the last barrier
  std::unordered_map<VkDeviceAddress, int> touched_;
  std::unordered_map<VkDeviceAddress, HandedOn> handed_on_;
};

}  // namespace dspark::vulkan
