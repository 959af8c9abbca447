// What running an artifact needs beyond TVM's device interface: memory by addresses, marks to wait for, recordings.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/reflection/registry.h>

#include "module.h"
#include "runtime.h"
#include "transfer.h"

namespace dspark::vulkan {
namespace {

namespace ffi = tvm::ffi;

Device& At(int64_t device) { return Runtime::Get().At(static_cast<int>(device)); }

int64_t Allocate(int64_t index, int64_t size, MemoryKind kind) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  const Piece piece = device.memory->Allocate(size, kind);
  if (kind == MemoryKind::kDevice) return static_cast<int64_t>(piece.address());
  return reinterpret_cast<int64_t>(piece.mapped());
}

/// Frees are what finalizers call, perhaps when the device is gone or lost.
void Release(int64_t index, int64_t address) {
  Device* device = Runtime::Get().Find(static_cast<int>(index));
  if (device == nullptr) return;
  std::lock_guard<std::mutex> lock(device->mutex);
  device->stream->ReleaseLater(device->memory->FindAnywhere(address).piece);
}

/// Copies between any two places of one device, in order with its other commands.
void Copy(int64_t index, int64_t to, int64_t from, int64_t size) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  const Place target = device.memory->FindAnywhere(to), source = device.memory->FindAnywhere(from);
  CheckRoom(device, target, size);
  CheckRoom(device, source, size);
  device.stream->Copy(target, 0, source, 0, size, 1);
}

/// Copies that have nothing to do with each other, from to, from, size of each.
std::vector<Transfer> TransfersOf(Device& device, const ffi::Array<int64_t>& numbers) {
  std::vector<Transfer> transfers;
  for (size_t i = 0; i + 2 < numbers.size(); i += 3) {
    const Transfer each{device.memory->FindAnywhere(numbers[i]), device.memory->FindAnywhere(numbers[i + 1]),
                        static_cast<VkDeviceSize>(numbers[i + 2])};
    CheckRoom(device, each.to, each.size);
    CheckRoom(device, each.from, each.size);
    transfers.push_back(each);
  }
  return transfers;
}

/// The same of several that have nothing to do with each other.
void CopyAll(int64_t index, ffi::Array<int64_t> numbers) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  device.stream->CopyAll(TransfersOf(device, numbers));
}

/// Copies, a recording (0 for none) and copies, submitted as one; returns what to wait for.
int64_t Run(int64_t index, ffi::Array<int64_t> before, int64_t recording, ffi::Array<int64_t> after) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  const std::vector<Transfer> first = TransfersOf(device, before), last = TransfersOf(device, after);
  if (!first.empty()) device.stream->CopyAll(first);
  if (recording != 0) device.stream->Put(recording);
  if (!last.empty()) device.stream->CopyAll(last);
  const uint64_t mark = device.stream->Mark();
  device.stream->Submit();
  return static_cast<int64_t>(mark);
}

void CopyRows(int64_t index, int64_t to, int64_t to_pitch, int64_t from, int64_t from_pitch, int64_t row,
              int64_t rows) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  const Place target = device.memory->FindAnywhere(to), source = device.memory->FindAnywhere(from);
  CheckRoom(device, target, (rows - 1) * to_pitch + row);
  CheckRoom(device, source, (rows - 1) * from_pitch + row);
  device.stream->Copy(target, to_pitch, source, from_pitch, row, static_cast<uint32_t>(rows));
}

void Zero(int64_t index, int64_t address, int64_t size) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  const Place place = device.memory->Find(address);
  CheckRoom(device, place, size);
  device.stream->Zero(place, size);
}

/// Wraps a member function of the stream, called with the mutex held.
template <typename Result, typename... Args>
auto OnStream(Result (Stream::*function)(Args...)) {
  return [function](int64_t index, Args... args) {
    Device& device = At(index);
    std::lock_guard<std::mutex> lock(device.mutex);
    return (device.stream.get()->*function)(args...);
  };
}

ffi::Array<int64_t> MemoryOf(int64_t index) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  const auto [free, total] = device.MemoryBytes();
  return {static_cast<int64_t>(free), static_cast<int64_t>(total), static_cast<int64_t>(device.memory->peak())};
}

int64_t MaxAllocation(int64_t index) {
  return static_cast<int64_t>(std::min<uint64_t>(At(index).capabilities.max_allocation, INT64_MAX));
}

/// Whether this thread's current device runs kernels that multiply matrices, with this much shared memory.
bool HasMatrices(int64_t columns, int64_t shared_bytes) {
  const Capabilities& has = At(CurrentDevice()).capabilities;
  return WantsMatrices() && has.Has(MatrixFeature(static_cast<uint32_t>(columns))) &&
         shared_bytes <= has.properties.limits.maxComputeSharedMemorySize;
}

/// Whether launches of this thread's current device overlap (order.h), and it takes work groups of so many threads.
bool DoOverlap(int64_t threads) {
  const Capabilities& has = At(CurrentDevice()).capabilities;
  return Overlaps(has) && threads <= has.properties.limits.maxComputeWorkGroupInvocations;
}

/// The memory of a tensor, which it keeps, from an offset on.
class PartMemory {
 public:
  PartMemory(ffi::Tensor whole, int64_t offset) : whole_(std::move(whole)), offset_(offset) {}
  void AllocData(DLTensor* tensor) {
    tensor->data = static_cast<char*>(whole_.data_ptr()) + offset_;
  }
  void FreeData(DLTensor*) {}

 private:
  ffi::Tensor whole_;
  int64_t offset_;
};

/// A tensor of its own address within another one, since kernels are not told of offsets.
ffi::Tensor PartOf(ffi::Tensor whole, int64_t offset, ffi::Shape shape, DLDataType dtype) {
  return ffi::Tensor::FromNDAlloc(PartMemory(whole, offset), shape, dtype, whole.device());
}

int64_t Stamp(int64_t index) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  return static_cast<int64_t>(device.clock->Stamp());
}

double Seconds(int64_t index, int64_t first, int64_t last) {
  SynchronizeDevice(At(index));
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  return device.clock->Nanoseconds(first, last) / 1e9;
}

int64_t Frees(int64_t index) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  return device.frees;
}

void SavePipelines(int64_t index) {
  Device& device = At(index);
  std::lock_guard<std::mutex> lock(device.mutex);
  device.pipelines->Save();
}

ffi::Array<ffi::String> TakeMessages() {
  ffi::Array<ffi::String> messages;
  for (const std::string& message : Runtime::Get().log.Take()) messages.push_back(ffi::String(message));
  return messages;
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("dspark.vulkan.count", [] { return static_cast<int64_t>(Runtime::Get().Count()); })
      .def("dspark.vulkan.set_device", [](int64_t device) { CurrentDevice() = static_cast<int>(device); })
      .def("dspark.vulkan.allocate",
           [](int64_t device, int64_t size) { return Allocate(device, size, MemoryKind::kDevice); })
      .def("dspark.vulkan.release", Release)
      .def("dspark.vulkan.allocate_host",
           [](int64_t device, int64_t size) { return Allocate(device, size, MemoryKind::kHost); })
      .def("dspark.vulkan.copy", Copy)
      .def("dspark.vulkan.copy_all", CopyAll)
      .def("dspark.vulkan.copy_rows", CopyRows)
      .def("dspark.vulkan.run", Run)
      .def("dspark.vulkan.zero", Zero)
      .def("dspark.vulkan.mark", OnStream(&Stream::Mark))
      .def("dspark.vulkan.submit", OnStream(&Stream::Submit))
      .def("dspark.vulkan.wait", [](int64_t device, int64_t value) { WaitFor(At(device), value); })
      .def("dspark.vulkan.synchronize", [](int64_t device) { SynchronizeDevice(At(device)); })
      .def("dspark.vulkan.stamp", Stamp)
      .def("dspark.vulkan.seconds", Seconds)
      .def("dspark.vulkan.begin_recording", OnStream(&Stream::BeginRecording))
      .def("dspark.vulkan.end_recording", OnStream(&Stream::EndRecording))
      .def("dspark.vulkan.abandon_recording", OnStream(&Stream::AbandonRecording))
      .def("dspark.vulkan.replay", OnStream(&Stream::Replay))
      .def("dspark.vulkan.forget", OnStream(&Stream::Forget))
      .def("dspark.vulkan.memory", MemoryOf)
      .def("dspark.vulkan.max_allocation", MaxAllocation)
      .def("dspark.vulkan.has_matrices", HasMatrices)
      .def("dspark.vulkan.overlaps", DoOverlap)
      .def("dspark.vulkan.part_of", PartOf)
      .def("dspark.vulkan.frees", Frees)
      .def("dspark.vulkan.save_pipelines", SavePipelines)
      .def("dspark.vulkan.messages", TakeMessages)
      .def("dspark.vulkan.shutdown", [] { Runtime::Get().Shutdown(); });
}

}  // namespace dspark::vulkan
