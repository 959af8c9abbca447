// The device as TVM knows it: memory, copies, synchronisation, attributes.
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <cstring>

#include "errors.h"
#include "module.h"
#include "runtime.h"
#include "transfer.h"

namespace dspark::vulkan {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAttrKind;

VkDeviceAddress ToAddress(const void* pointer) { return reinterpret_cast<VkDeviceAddress>(pointer); }

class VulkanDeviceApi final : public tvm::runtime::DeviceAPI {
 public:
  static VulkanDeviceApi* Get() {
    static auto* api = new VulkanDeviceApi();  // tensors freed at exit still come here
    return api;
  }

  void SetDevice(tvm::Device where) final { CurrentDevice() = where.device_id; }

  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

  void GetAttr(tvm::Device where, DeviceAttrKind kind, ffi::Any* result) final {
    if (kind == DeviceAttrKind::kExist) {
      *result = Exists(where.device_id);
      return;
    }
    const Device& device = Runtime::Get().At(where.device_id);
    const Capabilities& has = device.capabilities;
    const VkPhysicalDeviceLimits& limits = has.properties.limits;
    switch (kind) {
      case DeviceAttrKind::kMaxThreadsPerBlock:
        *result = static_cast<int64_t>(limits.maxComputeWorkGroupInvocations);
        break;
      case DeviceAttrKind::kWarpSize:
        *result = static_cast<int64_t>(has.subgroup_size);
        break;
      case DeviceAttrKind::kMaxSharedMemoryPerBlock:
        *result = static_cast<int64_t>(limits.maxComputeSharedMemorySize);
        break;
      case DeviceAttrKind::kDeviceName:
        *result = ffi::String(has.name);
        break;
      case DeviceAttrKind::kApiVersion:
        *result = static_cast<int64_t>(has.properties.apiVersion);
        break;
      case DeviceAttrKind::kDriverVersion:
        *result = static_cast<int64_t>(has.properties.driverVersion);
        break;
      case DeviceAttrKind::kTotalGlobalMemory:
        *result = static_cast<int64_t>(device.MemoryBytes().second);
        break;
      case DeviceAttrKind::kAvailableGlobalMemory:
        *result = static_cast<int64_t>(device.MemoryBytes().first);
        break;
      default:
        break;  // Vulkan does not say
    }
  }

  void GetTargetProperty(tvm::Device where, const std::string& property, ffi::Any* result) final {
    const Capabilities& has = Runtime::Get().At(where.device_id).capabilities;
    const VkPhysicalDeviceLimits& limits = has.properties.limits;
    static const std::pair<const char*, const char*> kFeatures[] = {
        {"supports_float16", "float16"},       {"supports_int8", "int8"},
        {"supports_int16", "int16"},           {"supports_int64", "int64"},
        {"supports_float64", "float64"},       {"supports_8bit_buffer", "storage8"},
        {"supports_16bit_buffer", "storage16"}, {"supports_cooperative_matrix", "cooperative_matrix"},
        {"supports_integer_dot_product", "integer_dot"},
    };
    for (const auto& [name, feature] : kFeatures) {
      if (property == name) *result = has.Has(feature);
    }
    const std::pair<const char*, int64_t> numbers[] = {
        {"thread_warp_size", has.subgroup_size},
        {"max_threads_per_block", limits.maxComputeWorkGroupInvocations},
        {"max_num_threads", limits.maxComputeWorkGroupInvocations},
        {"max_block_size_x", limits.maxComputeWorkGroupSize[0]},
        {"max_block_size_y", limits.maxComputeWorkGroupSize[1]},
        {"max_block_size_z", limits.maxComputeWorkGroupSize[2]},
        {"max_shared_memory_per_block", limits.maxComputeSharedMemorySize},
        {"max_push_constants_size", limits.maxPushConstantsSize},
        {"max_storage_buffer_range", limits.maxStorageBufferRange},
        {"min_subgroup_size", has.min_subgroup_size},
        {"max_subgroup_size", has.max_subgroup_size},
        {"vulkan_api_version", has.properties.apiVersion},
        {"driver_version", has.properties.driverVersion},
        {"vendor_id", has.properties.vendorID},
    };
    for (const auto& [name, number] : numbers) {
      if (property == name) *result = number;
    }
    if (property == "supports_int32" || property == "supports_float32") *result = true;
    if (property == "device_name") *result = ffi::String(has.name);
    if (property == "driver_name") *result = ffi::String(has.driver);
  }

  void* AllocDataSpace(tvm::Device where, size_t bytes, size_t, DLDataType) final {
    Device& device = Runtime::Get().At(where.device_id);
    std::lock_guard<std::mutex> lock(device.mutex);
    return reinterpret_cast<void*>(device.memory->Allocate(bytes, MemoryKind::kDevice).address());
  }

  void FreeDataSpace(tvm::Device where, void* pointer) final {
    Device* device = Runtime::Get().Find(where.device_id);
    if (device == nullptr) return;
    std::lock_guard<std::mutex> lock(device->mutex);
    ++device->frees;
    device->stream->ReleaseLater(ToAddress(pointer));
  }

  void StreamSync(tvm::Device where, TVMStreamHandle) final { SynchronizeDevice(Runtime::Get().At(where.device_id)); }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      tvm::Device from_where, tvm::Device to_where, DLDataType, TVMStreamHandle) final {
    const char* source = static_cast<const char*>(from) + from_offset;
    char* target = static_cast<char*>(to) + to_offset;
    if (from_where.device_type == kDLCPU) {
      CopyToDevice(Runtime::Get().At(to_where.device_id), ToAddress(target), source, bytes);
    } else if (to_where.device_type == kDLCPU) {
      CopyToHost(Runtime::Get().At(from_where.device_id), target, ToAddress(source), bytes);
    } else if (from_where.device_id == to_where.device_id) {
      CopyWithin(Runtime::Get().At(to_where.device_id), ToAddress(target), ToAddress(source), bytes);
    } else {
      std::vector<char> between(bytes);
      CopyToHost(Runtime::Get().At(from_where.device_id), between.data(), ToAddress(source), bytes);
      CopyToDevice(Runtime::Get().At(to_where.device_id), ToAddress(target), between.data(), bytes);
    }
  }

 private:
  /// TVM asks this to find out; it is no error to have no Vulkan, nor a device that cannot be used.
  static bool Exists(int index) {
    try {
      Runtime::Get().At(index);
      return true;
    } catch (const ffi::Error&) {
      return false;
    }
  }
};

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def_packed("device_api.vulkan",
                  [](ffi::PackedArgs, ffi::Any* result) { *result = static_cast<void*>(VulkanDeviceApi::Get()); })
      .def("device_api.vulkan.get_target_property",
           [](tvm::Device device, const std::string& property) {
             ffi::Any result;
             VulkanDeviceApi::Get()->GetTargetProperty(device, property, &result);
             return result;
           })
      .def("ffi.Module.load_from_bytes.vulkan", LoadModule);
}

}  // namespace dspark::vulkan
