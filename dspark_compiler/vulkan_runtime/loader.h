/// Vulkan's loader, found at run time: nothing here links to it, and a process without it can still load modules.
#pragma once

#include "matrices.h"

namespace dspark::vulkan {

#define DSPARK_GLOBAL_FUNCTIONS(X) \
  X(CreateInstance)                \
  X(EnumerateInstanceVersion)      \
  X(EnumerateInstanceLayerProperties)

#define DSPARK_INSTANCE_FUNCTIONS(X)     \
  X(CreateDevice)                        \
  X(DestroyInstance)                     \
  X(EnumerateDeviceExtensionProperties)  \
  X(EnumeratePhysicalDevices)            \
  X(GetDeviceProcAddr)                   \
  X(GetPhysicalDeviceCooperativeMatrixPropertiesKHR) \
  X(GetPhysicalDeviceFeatures2)          \
  X(GetPhysicalDeviceMemoryProperties2)  \
  X(GetPhysicalDeviceProperties2)        \
  X(GetPhysicalDeviceQueueFamilyProperties)

#define DSPARK_DEVICE_FUNCTIONS(X) \
  X(AllocateCommandBuffers)        \
  X(AllocateMemory)                \
  X(BeginCommandBuffer)            \
  X(BindBufferMemory)              \
  X(CmdBindPipeline)               \
  X(CmdCopyBuffer)                 \
  X(CmdDispatch)                   \
  X(CmdFillBuffer)                 \
  X(CmdPipelineBarrier)            \
  X(CmdPushConstants)              \
  X(CmdResetQueryPool)             \
  X(CmdWriteTimestamp)             \
  X(CreateBuffer)                  \
  X(CreateCommandPool)             \
  X(CreateComputePipelines)        \
  X(CreatePipelineCache)           \
  X(CreatePipelineLayout)          \
  X(CreateQueryPool)               \
  X(CreateSemaphore)               \
  X(CreateShaderModule)            \
  X(DestroyBuffer)                 \
  X(DestroyCommandPool)            \
  X(DestroyDevice)                 \
  X(DestroyPipeline)               \
  X(DestroyPipelineCache)          \
  X(DestroyPipelineLayout)         \
  X(DestroyQueryPool)              \
  X(DestroySemaphore)              \
  X(DestroyShaderModule)           \
  X(DeviceWaitIdle)                \
  X(EndCommandBuffer)              \
  X(FreeCommandBuffers)            \
  X(FreeMemory)                    \
  X(GetBufferDeviceAddress)        \
  X(GetBufferMemoryRequirements)   \
  X(GetDeviceQueue)                \
  X(GetPipelineCacheData)          \
  X(GetQueryPoolResults)           \
  X(GetSemaphoreCounterValue)      \
  X(MapMemory)                     \
  X(QueueSubmit)                   \
  X(ResetCommandBuffer)            \
  X(WaitSemaphores)

#define DSPARK_MEMBER(name) PFN_vk##name name = nullptr;

/// What can be called before there is an instance.
struct Loader {
  PFN_vkGetInstanceProcAddr GetInstanceProcAddr = nullptr;
  DSPARK_GLOBAL_FUNCTIONS(DSPARK_MEMBER)

  /// Opens libvulkan.so.1; throws where there is none. It stays open: drivers leave threads and exit handlers behind.
  Loader();
};

struct InstanceFunctions {
  DSPARK_INSTANCE_FUNCTIONS(DSPARK_MEMBER)
  void Load(const Loader& loader, VkInstance instance);
};

struct DeviceFunctions {
  DSPARK_DEVICE_FUNCTIONS(DSPARK_MEMBER)
  void Load(const InstanceFunctions& instance, VkDevice device);
};

#undef DSPARK_MEMBER

}  // namespace dspark::vulkan
