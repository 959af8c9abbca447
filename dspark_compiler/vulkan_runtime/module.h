/// Modules of kernels as TVM knows them.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "device.h"
#include "kernel.h"
#include "kernel_module.h"

namespace dspark::vulkan {

/// The kernels of one module, and their pipelines on each device, compiled at the first launch.
class KernelSet final : public NamedKernels {
 public:
  explicit KernelSet(const tvm::ffi::Bytes& bytes);
  ~KernelSet();

  /// Launches a kernel on this thread's current device.
  void Launch(int kernel, const tvm::ffi::PackedArgs& args);

 private:
  /// Whoever uses it holds the device's mutex.
  std::shared_ptr<Pipeline>& PipelineOf(int kernel, int device);

  std::vector<uint32_t> words_;  // a copy that begins at a multiple of 4
  std::vector<Kernel> kernels_;
  std::mutex mutex_;
  std::unordered_map<int, std::vector<std::shared_ptr<Pipeline>>> pipelines_;  // by device, then by kernel
};

/// Makes a module of its bytes. Throws where they are none.
tvm::ffi::Module LoadModule(const tvm::ffi::Bytes& bytes);

}  // namespace dspark::vulkan
