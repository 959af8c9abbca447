/// HIP, found at run time: nothing here links to it, and a process without it can still load modules.
///
/// Declarations are those of hip_runtime_api.h as far as they are used; all functions return hipError_t.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>

namespace dspark::rocm {

using Handle = void*;  // of streams, modules and functions

constexpr int kMemcpyDefault = 4;        // hipMemcpyDefault: by the addresses
constexpr int kStreamNonBlocking = 1;    // hipStreamNonBlocking
constexpr int kErrorOutOfMemory = 2;     // hipErrorOutOfMemory
constexpr int kErrorNoBinary = 209;      // hipErrorNoBinaryForGpu

// hipModuleLaunchKernel's HIP_LAUNCH_PARAM_*.
inline Handle LaunchParam(size_t which) { return reinterpret_cast<Handle>(which); }
constexpr size_t kParamBuffer = 1, kParamBufferSize = 2, kParamEnd = 3;

#define DSPARK_HIP_FUNCTIONS(X)                                                                           \
  X(GetDeviceCount, (int* count))                                                                         \
  X(SetDevice, (int device))                                                                              \
  X(DeviceGetName, (char* name, int bytes, int device))                                                   \
  X(MemGetInfo, (size_t * free, size_t* total))                                                           \
  X(Malloc, (void** address, size_t bytes))                                                               \
  X(Free, (void* address))                                                                                \
  X(MemcpyAsync, (void* to, const void* from, size_t bytes, int kind, Handle stream))                     \
  X(StreamCreateWithFlags, (Handle * stream, unsigned flags))                                             \
  X(StreamDestroy, (Handle stream))                                                                       \
  X(StreamSynchronize, (Handle stream))                                                                   \
  X(ModuleLoadData, (Handle * module, const void* image))                                                 \
  X(ModuleUnload, (Handle module))                                                                        \
  X(ModuleGetFunction, (Handle * function, Handle module, const char* name))                              \
  X(ModuleLaunchKernel, (Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x,  \
                         unsigned y, unsigned z, unsigned shared, Handle stream, void** params, void** extra)) \
  X(GetLastError, ())

/// The functions of libamdhip64, loaded at the first use.
struct Hip {
#define DSPARK_MEMBER(name, parameters) int(*name) parameters = nullptr;
  DSPARK_HIP_FUNCTIONS(DSPARK_MEMBER)
#undef DSPARK_MEMBER
  const char* (*GetErrorString)(int code) = nullptr;

  /// Throws where there is no HIP, or one without a function that is needed.
  static const Hip& Get();
};

/// "device 0 (AMD Instinct MI300X)": how errors name a device.
std::string NameOf(int device);

/// Throws where ``code`` is an error, saying what was done on which device.
void Check(int code, int device, const std::string& what);

}  // namespace dspark::rocm
