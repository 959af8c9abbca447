/// Modules of kernels as TVM knows them.
#pragma once

#include <tvm/ffi/extra/module.h>

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "device.h"
#include "kernel.h"

namespace dspark::vulkan {

/// The kernels of one module, and their pipelines on each device, compiled at the first launch.
class KernelSet {
 public:
  explicit KernelSet(tvm::ffi::Bytes bytes);
  ~KernelSet();
  KernelSet(const KernelSet&) = delete;
  KernelSet& operator=(const KernelSet&) = delete;

  /// The number of a kernel; -1 where there is none of this name.
  int Find(const std::string& name) const;

  const tvm::ffi::Bytes& bytes() const { return bytes_; }

  /// Launches a kernel on this thread's current device.
  void Launch(int kernel, const tvm::ffi::PackedArgs& args);

 private:
  /// Whoever uses it holds the device's mutex.
  std::shared_ptr<Pipeline>& PipelineOf(int kernel, int device);

  tvm::ffi::Bytes bytes_;
  std::vector<uint32_t> words_;  // a copy that begins at a multiple of 4
  std::vector<Kernel> kernels_;
  std::unordered_map<std::string, int> numbers_;
  std::mutex mutex_;
  std::unordered_map<int, std::vector<std::shared_ptr<Pipeline>>> pipelines_;  // by device, then by kernel
};

/// The number of the device that this thread launches kernels on.
int& CurrentDevice();

/// Makes a module of its bytes. Throws where they are none.
tvm::ffi::Module LoadModule(const tvm::ffi::Bytes& bytes);

}  // namespace dspark::vulkan
