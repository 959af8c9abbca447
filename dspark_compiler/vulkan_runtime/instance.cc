#include "instance.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "errors.h"

namespace dspark::vulkan {
namespace {

constexpr const char* kValidationLayer = "VK_LAYER_KHRONOS_validation";
constexpr uint32_t kApiVersion = VK_API_VERSION_1_2;

bool WantsValidation() {
  const char* value = std::getenv("DSPARK_VULKAN_VALIDATION");
  return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
}

bool HasLayer(const Loader& loader, const char* name) {
  uint32_t count = 0;
  loader.EnumerateInstanceLayerProperties(&count, nullptr);
  std::vector<VkLayerProperties> layers(count);
  loader.EnumerateInstanceLayerProperties(&count, layers.data());
  for (const VkLayerProperties& layer : layers) {
    if (std::strcmp(layer.layerName, name) == 0) return true;
  }
  return false;
}

VKAPI_ATTR VkBool32 VKAPI_CALL OnMessage(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                                         const VkDebugUtilsMessengerCallbackDataEXT* data, void* log) {
  std::fprintf(stderr, "Vulkan validation: %s\n", data->pMessage);
  static_cast<ValidationLog*>(log)->Add(data->pMessage);
  return VK_FALSE;
}

VkDebugUtilsMessengerCreateInfoEXT MessengerInfo(ValidationLog* log) {
  VkDebugUtilsMessengerCreateInfoEXT info{VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT};
  info.messageSeverity =
      VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT;
  info.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT;
  info.pfnUserCallback = OnMessage;
  info.pUserData = log;
  return info;
}

}  // namespace

void ValidationLog::Add(std::string message) {
  std::lock_guard<std::mutex> lock(mutex_);
  messages_.push_back(std::move(message));
}

std::vector<std::string> ValidationLog::Take() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(messages_, {});
}

Instance::Instance(ValidationLog* log) {
  uint32_t version = VK_API_VERSION_1_0;
  if (loader_.EnumerateInstanceVersion != nullptr) loader_.EnumerateInstanceVersion(&version);
  if (version < kApiVersion) Fail("the Vulkan loader (libvulkan.so.1) is older than 1.2; install a newer one");

  VkApplicationInfo application{VK_STRUCTURE_TYPE_APPLICATION_INFO};
  application.pApplicationName = "dspark";
  application.apiVersion = VK_API_VERSION_1_3;
  VkInstanceCreateInfo info{VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO};
  info.pApplicationInfo = &application;
  // Chained to the instance, the messenger also hears of what is wrong as the instance is made and destroyed.
  VkDebugUtilsMessengerCreateInfoEXT messenger = MessengerInfo(log);
  const char* extensions[] = {VK_EXT_DEBUG_UTILS_EXTENSION_NAME};
  const bool validated = WantsValidation();
  if (validated) {
    if (!HasLayer(loader_, kValidationLayer)) {
      Fail(std::string("DSPARK_VULKAN_VALIDATION is set, but ") + kValidationLayer +
           " is not installed (Debian: vulkan-validationlayers)");
    }
    info.pNext = &messenger;
    info.enabledLayerCount = 1;
    info.ppEnabledLayerNames = &kValidationLayer;
    info.enabledExtensionCount = 1;
    info.ppEnabledExtensionNames = extensions;
  }
  VkResult result = loader_.CreateInstance(&info, nullptr, &handle_);
  if (result == VK_ERROR_INCOMPATIBLE_DRIVER) {
    Fail("no Vulkan driver found; install the GPU's (or mesa-vulkan-drivers), or name one in VK_DRIVER_FILES");
  }
  if (result != VK_SUCCESS) Fail("Vulkan cannot be used: vkCreateInstance: " + Describe(result));
  functions.Load(loader_, handle_);
  if (validated) {
    auto create = reinterpret_cast<PFN_vkCreateDebugUtilsMessengerEXT>(
        loader_.GetInstanceProcAddr(handle_, "vkCreateDebugUtilsMessengerEXT"));
    create(handle_, &messenger, nullptr, &messenger_);
  }
  uint32_t count = 0;
  functions.EnumeratePhysicalDevices(handle_, &count, nullptr);
  devices.resize(count);
  functions.EnumeratePhysicalDevices(handle_, &count, devices.data());
  devices.resize(count);
}

Instance::~Instance() {
  if (messenger_ != VK_NULL_HANDLE) {
    auto destroy = reinterpret_cast<PFN_vkDestroyDebugUtilsMessengerEXT>(
        loader_.GetInstanceProcAddr(handle_, "vkDestroyDebugUtilsMessengerEXT"));
    destroy(handle_, messenger_, nullptr);
  }
  functions.DestroyInstance(handle_, nullptr);
}

}  // namespace dspark::vulkan
