#include "loader.h"

#include <dlfcn.h>

#include "errors.h"

namespace dspark::vulkan {

Loader::Loader() {
  void* library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    Fail("no Vulkan loader (libvulkan.so.1) found; install it (Debian: libvulkan1) and a driver for the device");
  }
  GetInstanceProcAddr = reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(library, "vkGetInstanceProcAddr"));
  if (GetInstanceProcAddr == nullptr) Fail("libvulkan.so.1 has no vkGetInstanceProcAddr; install another one");
#define DSPARK_LOAD(name) name = reinterpret_cast<PFN_vk##name>(GetInstanceProcAddr(nullptr, "vk" #name));
  DSPARK_GLOBAL_FUNCTIONS(DSPARK_LOAD)
#undef DSPARK_LOAD
}

void InstanceFunctions::Load(const Loader& loader, VkInstance instance) {
#define DSPARK_LOAD(name) name = reinterpret_cast<PFN_vk##name>(loader.GetInstanceProcAddr(instance, "vk" #name));
  DSPARK_INSTANCE_FUNCTIONS(DSPARK_LOAD)
#undef DSPARK_LOAD
}

void DeviceFunctions::Load(const InstanceFunctions& instance, VkDevice device) {
#define DSPARK_LOAD(name) name = reinterpret_cast<PFN_vk##name>(instance.GetDeviceProcAddr(device, "vk" #name));
  DSPARK_DEVICE_FUNCTIONS(DSPARK_LOAD)
#undef DSPARK_LOAD
}

}  // namespace dspark::vulkan
