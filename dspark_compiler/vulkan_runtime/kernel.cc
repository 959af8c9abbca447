#include "kernel.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/json.h>

#include <cstring>
#include <unordered_map>

#include "errors.h"

namespace dspark::vulkan {
namespace {

namespace ffi = tvm::ffi;
using JsonObject = ffi::Map<ffi::String, ffi::Any>;
using JsonArray = ffi::Array<ffi::Any>;

constexpr char kMagic[] = "DSPKVK01";
constexpr size_t kMagicBytes = 8;
constexpr uint32_t kSpirvMagic = 0x07230203;

/// The fields of one JSON object; ``where`` begins its errors.
class Fields {
 public:
  Fields(const ffi::Any& value, std::string where) : where_(std::move(where)) {
    auto object = value.try_cast<ffi::json::Object>();
    if (!object.has_value()) Fail(where_ + ": is no JSON object");
    object_ = *object;
  }

  template <typename T>
  T Get(const char* name) const {
    auto value = object_.Get(ffi::String(name));
    auto typed = value.has_value() ? value->template try_cast<T>() : std::optional<T>();
    if (!typed.has_value()) Fail(where_ + ": lacks a field " + name + ", or it is of the wrong type");
    return *typed;
  }

  std::string Text(const char* name) const { return Get<ffi::String>(name); }

  uint32_t Number(const char* name) const {
    const int64_t value = Get<int64_t>(name);
    if (value < 0 || value > UINT32_MAX) Fail(where_ + ": " + name + " is out of range");
    return static_cast<uint32_t>(value);
  }

  std::string TextOr(const char* name, const char* otherwise) const {
    return object_.count(ffi::String(name)) != 0 ? Text(name) : std::string(otherwise);
  }

 private:
  ffi::json::Object object_;
  std::string where_;
};

Argument ParseArgument(const ffi::Any& value, const std::string& where) {
  static const std::unordered_map<std::string, Argument::Kind> kKinds = {
      {"int32", Argument::kInt32},     {"uint32", Argument::kInt32},    {"int64", Argument::kInt64},
      {"uint64", Argument::kInt64},    {"float32", Argument::kFloat32}, {"float64", Argument::kFloat64},
  };
  static const std::unordered_map<std::string, Access> kAccesses = {
      {"r", Access::kRead}, {"w", Access::kWrite}, {"rw", Access::kBoth}};
  const Fields fields(value, where);
  const uint32_t offset = fields.Number("offset");
  if (fields.Text("kind") == "buffer") {
    auto access = kAccesses.find(fields.TextOr("access", "rw"));
    if (access == kAccesses.end()) Fail(where + ": an access that is none of r, w, rw");
    return {Argument::kBuffer, offset, access->second};
  }
  auto kind = kKinds.find(fields.Text("dtype"));
  if (kind == kKinds.end()) Fail(where + ": type " + fields.Text("dtype") + " cannot be given");
  return {kind->second, offset, Access::kNone};
}

uint32_t SizeOf(Argument::Kind kind) { return kind == Argument::kInt32 || kind == Argument::kFloat32 ? 4 : 8; }

int ParseLaunch(const std::string& tag, const std::string& where) {
  static const std::unordered_map<std::string, int> kPlaces = {{"blockIdx.x", 0},  {"blockIdx.y", 1},
                                                               {"blockIdx.z", 2},  {"threadIdx.x", 3},
                                                               {"threadIdx.y", 4}, {"threadIdx.z", 5}};
  auto place = kPlaces.find(tag);
  if (place == kPlaces.end()) Fail(where + ": unknown launch parameter " + tag);
  return place->second;
}

Kernel ParseKernel(const ffi::Any& value, const char* blob, size_t blob_bytes) {
  const std::string name = Fields(value, "Vulkan module").Text("name");
  const std::string where = "Vulkan module: kernel " + name;
  const Fields fields(value, where);
  Kernel kernel;
  kernel.name = name;
  for (const ffi::Any& argument : fields.Get<JsonArray>("args")) {
    kernel.arguments.push_back(ParseArgument(argument, where));
  }
  kernel.block_bytes = fields.Number("block_bytes");
  kernel.block_by_address = fields.Text("block") == "address";
  for (const Argument& argument : kernel.arguments) {
    if (argument.offset + SizeOf(argument.kind) > kernel.block_bytes) Fail(where + ": an argument outside its block");
  }
  if (!kernel.block_by_address && kernel.block_bytes > kMaxPushBytes) {
    Fail(where + ": " + std::to_string(kernel.block_bytes) + " bytes of arguments are more than can be pushed");
  }
  for (const ffi::Any& tag : fields.Get<JsonArray>("launch")) {
    kernel.launch.push_back(ParseLaunch(tag.cast<ffi::String>(), where));
  }
  const JsonArray workgroup = fields.Get<JsonArray>("workgroup");
  if (workgroup.size() != 3) Fail(where + ": a workgroup has three sizes");
  for (size_t i = 0; i < 3; ++i) kernel.workgroup[i] = static_cast<uint32_t>(workgroup[i].cast<int64_t>());
  kernel.shared_bytes = fields.Number("shared_bytes");
  kernel.subgroup = fields.Number("subgroup");
  for (const ffi::Any& feature : fields.Get<JsonArray>("features")) {
    kernel.features.push_back(feature.cast<ffi::String>());
  }
  const size_t offset = fields.Number("offset");
  kernel.spirv_bytes = fields.Number("bytes");
  if (offset % 4 != 0 || kernel.spirv_bytes % 4 != 0 || kernel.spirv_bytes < 20 ||
      offset + kernel.spirv_bytes > blob_bytes) {
    Fail(where + ": its SPIR-V is not in the module");
  }
  kernel.spirv = reinterpret_cast<const uint32_t*>(blob + offset);
  if (*kernel.spirv != kSpirvMagic) Fail(where + ": its SPIR-V does not begin like SPIR-V");
  return kernel;
}

}  // namespace

std::vector<Kernel> ParseKernels(const char* bytes, size_t size) {
  uint64_t length = 0;
  const size_t start = kMagicBytes + sizeof(length);
  if (size < start || std::memcmp(bytes, kMagic, kMagicBytes) != 0) Fail("Vulkan module: not one this version reads");
  std::memcpy(&length, bytes + kMagicBytes, sizeof(length));
  if (length > size - start) Fail("Vulkan module: cut short");
  const size_t blob = (start + length + 3) / 4 * 4;
  if (blob > size) Fail("Vulkan module: cut short");
  ffi::String problem;
  const ffi::Any parsed = ffi::json::Parse(ffi::String(bytes + start, length), &problem);
  if (problem.size() != 0) Fail("Vulkan module: its description is no JSON: " + std::string(problem));
  std::vector<Kernel> kernels;
  for (const ffi::Any& kernel : Fields(parsed, "Vulkan module").Get<JsonArray>("kernels")) {
    kernels.push_back(ParseKernel(kernel, bytes + blob, size - blob));
  }
  return kernels;
}

}  // namespace dspark::vulkan
