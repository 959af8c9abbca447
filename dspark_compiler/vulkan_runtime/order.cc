#include "order.h"

namespace dspark::vulkan {
namespace {

constexpr int kReads = static_cast<int>(Access::kRead), kWrites = static_cast<int>(Access::kWrite);

/// What an access is where nobody waits for it.
int Plain(Access access) {
  switch (access) {
    case Access::kAwait:
      return kReads;
    case Access::kPublish:
    case Access::kUnset:
      return kWrites;
    case Access::kExchange:
      return kReads | kWrites;
    default:
      return static_cast<int>(access);
  }
}

}  // namespace

Order::HandedOn* Order::Find(const Use& use) {
  auto found = handed_on_.find(use.piece);
  return found == handed_on_.end() ? nullptr : &found->second;
}

bool Order::Depends(const Use& use) {
  auto touched = touched_.find(use.piece);
  const int before = touched == touched_.end() ? 0 : touched->second;
  HandedOn* memory = Find(use);
  if (memory != nullptr && (before & kWrites) == 0) {
    if (use.access == Access::kAwait && memory->published.count(use.address) != 0) return false;
    if (use.access == Access::kPublish && memory->published.count(use.address) == 0) return false;
    if (use.access == Access::kExchange) return memory->exchanged.count(use.address) != 0;
  }
  if (memory != nullptr && memory->pending) return true;
  // What both only read needs no order.
  return before != 0 && ((before | Plain(use.access)) & kWrites) != 0;
}

void Order::Note(const Use& use) {
  if (use.access == Access::kUnset && overlaps_) handed_on_[use.piece] = HandedOn();
  HandedOn* memory = Find(use);
  if (memory != nullptr) {
    if (use.access == Access::kAwait && memory->published.count(use.address) != 0) {
      memory->pending = true;
      return;
    }
    if (use.access == Access::kPublish && memory->published.insert(use.address).second) {
      memory->pending = true;
      return;
    }
    if (use.access == Access::kExchange) {
      memory->exchanged.insert(use.address);
      memory->pending = true;
      return;
    }
    // Published again, it would be there before it is: from here on barriers tell.
    if (use.access == Access::kPublish) Release(use.piece);
  }
  touched_[use.piece] |= Plain(use.access);
}

bool Order::Depends(const Use* uses, size_t count) {
  bool depends = all_touched_;
  for (size_t i = 0; i < count && !depends; ++i) depends = Depends(uses[i]);
  return depends;
}

void Order::Note(const Use* uses, size_t count) {
  for (size_t i = 0; i < count; ++i) Note(uses[i]);
}

void Order::Clear() {
  touched_.clear();
  all_touched_ = false;
  for (auto& [piece, memory] : handed_on_) {
    memory.exchanged.clear();
    memory.pending = false;
  }
}

void Order::Forget() {
  all_touched_ = true;
  handed_on_.clear();
}

void Order::Release(VkDeviceAddress piece) {
  auto found = handed_on_.find(piece);
  if (found == handed_on_.end()) return;
  if (found->second.pending) touched_[piece] |= kWrites;
  handed_on_.erase(found);
}

}  // namespace dspark::vulkan
