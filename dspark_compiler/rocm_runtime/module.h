/// Modules of kernels as TVM knows them.
#pragma once

#include <tvm/ffi/extra/module.h>

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "hip.h"
#include "kernel.h"

namespace dspark::rocm {

/// The kernels of one module, loaded on each device at the first launch there.
class KernelSet {
 public:
  explicit KernelSet(tvm::ffi::Bytes bytes);
  ~KernelSet();
  KernelSet(const KernelSet&) = delete;
  KernelSet& operator=(const KernelSet&) = delete;

  /// The number of a kernel; -1 where there is none of this name.
  int Find(const std::string& name) const;

  const tvm::ffi::Bytes& bytes() const { return bytes_; }

  /// Puts a kernel on the stream of this thread's current device.
  void Launch(int kernel, const tvm::ffi::PackedArgs& args);

 private:
  struct Loaded {
    Handle module = nullptr;
    std::vector<Handle> functions;  // by kernel, null before the first launch
  };

  Handle FunctionOf(int kernel, int device);

  tvm::ffi::Bytes bytes_;
  ParsedModule parsed_;
  std::unique_ptr<char, void (*)(void*)> code_;  // a copy that begins where loaders expect it, on a page
  std::unordered_map<std::string, int> numbers_;
  std::mutex mutex_;
  std::unordered_map<int, Loaded> loaded_;  // by device
};

/// The number of the device that this thread launches kernels on.
int& CurrentDevice();

/// Makes a module of its bytes. Throws where they are none.
tvm::ffi::Module LoadModule(const tvm::ffi::Bytes& bytes);

}  // namespace dspark::rocm
