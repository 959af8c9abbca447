#include "runtime.h"

#include "errors.h"

namespace dspark::vulkan {
namespace {

// Made when the first device is there, so that at exit it goes before what the driver's libraries registered till then.
struct AtExit {
  ~AtExit() { Runtime::Get().Shutdown(); }
};

}  // namespace

Runtime& Runtime::Get() {
  static Runtime* runtime = new Runtime();
  return *runtime;
}

Instance& Runtime::Need() {
  if (over_) Fail("Vulkan was shut down");
  if (instance_ == nullptr) instance_ = std::make_unique<Instance>(&log);
  return *instance_;
}

Device& Runtime::At(int index) {
  std::lock_guard<std::mutex> lock(mutex_);
  Instance& instance = Need();
  if (devices_.empty()) devices_.resize(instance.devices.size());
  if (index < 0 || index >= static_cast<int>(devices_.size())) {
    const size_t count = devices_.size();
    Fail("there is no Vulkan device " + std::to_string(index) + ": this machine has " + std::to_string(count) +
         ", counted from 0");
  }
  auto& device = devices_[index];
  if (device == nullptr) {
    device = std::make_unique<Device>(instance, index);
    static AtExit at_exit;
  }
  return *device;
}

Device* Runtime::Find(int index) {
  std::lock_guard<std::mutex> lock(mutex_);
  return index >= 0 && index < static_cast<int>(devices_.size()) ? devices_[index].get() : nullptr;
}

int Runtime::Count() {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int>(Need().devices.size());
}

void Runtime::Shutdown() {
  std::lock_guard<std::mutex> lock(mutex_);
  devices_.clear();
  instance_.reset();
  over_ = true;
}

}  // namespace dspark::vulkan
