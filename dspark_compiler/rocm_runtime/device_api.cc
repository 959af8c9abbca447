// The device as TVM knows it: memory, copies, streams.
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include "fields.h"
#include "hip.h"
#include "module.h"

namespace dspark::rocm {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAttrKind;

constexpr int64_t kMostThreads = 256;  // of a work group: what kernels are compiled for
constexpr int64_t kHipVersion = 600;   // major and minor of the oldest HIP that is served

class RocmDeviceApi final : public tvm::runtime::DeviceAPI {
 public:
  static RocmDeviceApi* Get() {
    static auto* api = new RocmDeviceApi();  // tensors freed at exit still come here
    return api;
  }

  void SetDevice(tvm::Device where) final {
    CurrentDevice() = where.device_id;
    Check(Hip::Get().SetDevice(where.device_id), where.device_id, "selecting it");
  }

  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

  /// TVM's code generator asks whether there is a device for nothing but the two numbers after it. They are the same
  /// with any device and with none, so that what is compiled does not depend on where.
  void GetAttr(tvm::Device where, DeviceAttrKind kind, ffi::Any* result) final {
    switch (kind) {
      case DeviceAttrKind::kExist:
        *result = true;
        break;
      case DeviceAttrKind::kMaxThreadsPerBlock:
        *result = kMostThreads;
        break;
      case DeviceAttrKind::kApiVersion:
        *result = kHipVersion;
        break;
      case DeviceAttrKind::kDeviceName:
        *result = ffi::String(NameOf(where.device_id));
        break;
      case DeviceAttrKind::kTotalGlobalMemory:
        *result = static_cast<int64_t>(Memory(where).second);
        break;
      case DeviceAttrKind::kAvailableGlobalMemory:
        *result = static_cast<int64_t>(Memory(where).first);
        break;
      default:
        break;  // nobody here asks
    }
  }

  void* AllocDataSpace(tvm::Device where, size_t bytes, size_t, DLDataType) final {
    SetDevice(where);
    void* address = nullptr;
    Check(Hip::Get().Malloc(&address, bytes), where.device_id, "allocating " + std::to_string(bytes) + " bytes");
    return address;
  }

  /// What finalizers call, perhaps when the device is lost: there is nobody to tell.
  void FreeDataSpace(tvm::Device where, void* address) final {
    const Hip& hip = Hip::Get();
    if (hip.SetDevice(where.device_id) == 0) hip.Free(address);
    CurrentDevice() = where.device_id;
  }

  TVMStreamHandle CreateStream(tvm::Device where) final {
    SetDevice(where);
    Handle stream = nullptr;
    Check(Hip::Get().StreamCreateWithFlags(&stream, kStreamNonBlocking), where.device_id, "making a stream");
    return stream;
  }

  void FreeStream(tvm::Device where, TVMStreamHandle stream) final {
    SetDevice(where);
    Check(Hip::Get().StreamDestroy(stream), where.device_id, "ending a stream");
  }

  void StreamSync(tvm::Device where, TVMStreamHandle stream) final {
    SetDevice(where);
    Check(Hip::Get().StreamSynchronize(stream), where.device_id, "waiting");
  }

 protected:
  /// In the order of the stream; the host's side is read, or there, when this returns.
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      tvm::Device from_where, tvm::Device to_where, DLDataType, TVMStreamHandle stream) final {
    const tvm::Device where = from_where.device_type == kDLROCM ? from_where : to_where;
    SetDevice(where);
    if (stream == nullptr) stream = TVMFFIEnvGetStream(kDLROCM, where.device_id);
    Check(Hip::Get().MemcpyAsync(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset,
                                 bytes, kMemcpyDefault, stream),
          where.device_id, "copying");
    if (from_where.device_type != to_where.device_type) StreamSync(where, stream);
  }

 private:
  std::pair<size_t, size_t> Memory(tvm::Device where) {
    SetDevice(where);
    size_t free = 0, total = 0;
    Check(Hip::Get().MemGetInfo(&free, &total), where.device_id, "asking for its memory");
    return {free, total};
  }
};

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def_packed("device_api.rocm",
                  [](ffi::PackedArgs, ffi::Any* result) { *result = static_cast<void*>(RocmDeviceApi::Get()); })
      .def("ffi.Module.load_from_bytes.rocm", LoadModule);
}

}  // namespace dspark::rocm
