/// Modules of kernels as TVM knows them.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "hip.h"
#include "kernel.h"
#include "kernel_module.h"

namespace dspark::rocm {

/// The kernels of one module, loaded on each device at the first launch there.
class KernelSet final : public NamedKernels {
 public:
  explicit KernelSet(const tvm::ffi::Bytes& bytes);
  ~KernelSet();

  /// Puts a kernel on the stream of this thread's current device.
  void Launch(int kernel, const tvm::ffi::PackedArgs& args);

 private:
  struct Loaded {
    Handle module = nullptr;
    std::vector<Handle> functions;  // by kernel, null before the first launch
  };

  Handle FunctionOf(int kernel, int device);

  ParsedModule parsed_;
  std::unique_ptr<char, void (*)(void*)> code_;  // a copy that begins where loaders expect it, on a page
  std::mutex mutex_;
  std::unordered_map<int, Loaded> loaded_;  // by device
};

/// Makes a module of its bytes. Throws where they are none.
tvm::ffi::Module LoadModule(const tvm::ffi::Bytes& bytes);

}  // namespace dspark::rocm
