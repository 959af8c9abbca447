/// What this process has of Vulkan: one instance, and the devices that were used.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "device.h"
#include "instance.h"

namespace dspark::vulkan {

class Runtime {
 public:
  /// It is never destroyed, since modules and tensors may outlive everything else; what it holds is, at exit.
  static Runtime& Get();

  /// The device of a number, made when it is first asked for. Throws where it cannot be had.
  Device& At(int index);

  /// The same, or null where it was never made, or is gone.
  Device* Find(int index);

  /// How many devices there are. Throws where Vulkan cannot be used.
  int Count();

  /// Ends all work and destroys everything; later calls find no devices.
  void Shutdown();

  ValidationLog log;

 private:
  Instance& Need();

  std::mutex mutex_;
  std::unique_ptr<Instance> instance_;
  std::vector<std::unique_ptr<Device>> devices_;
  bool over_ = false;
};

}  // namespace dspark::vulkan
