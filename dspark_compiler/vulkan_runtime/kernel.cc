#include "kernel.h"

#include <cstring>
#include <unordered_map>

#include "errors.h"
#include "fields.h"

namespace dspark::vulkan {
namespace {

namespace ffi = tvm::ffi;

constexpr char kMagic[] = "DSPKVK01";
constexpr size_t kMagicBytes = 8;
constexpr uint32_t kSpirvMagic = 0x07230203;

Argument ParseArgument(const ffi::Any& value, const std::string& where) {
  static const std::unordered_map<std::string, Argument::Kind> kKinds = {
      {"int32", Argument::kInt32},     {"uint32", Argument::kInt32},    {"int64", Argument::kInt64},
      {"uint64", Argument::kInt64},    {"float32", Argument::kFloat32}, {"float64", Argument::kFloat64},
  };
  static const std::unordered_map<std::string, Access> kAccesses = {
      {"r", Access::kRead},     {"w", Access::kWrite},   {"rw", Access::kBoth}, {"x", Access::kExchange},
      {"a", Access::kAwait},    {"p", Access::kPublish}, {"u", Access::kUnset},
  };
  const Fields fields(value, where);
  const uint32_t offset = fields.Number("offset");
  if (fields.Text("kind") == "buffer") {
    auto access = kAccesses.find(fields.TextOr("access", "rw"));
    if (access == kAccesses.end()) Fail(where + ": an access that is none of r, w, rw, x, a, p, u");
    return {Argument::kBuffer, offset, access->second};
  }
  auto kind = kKinds.find(fields.Text("dtype"));
  if (kind == kKinds.end()) Fail(where + ": type " + fields.Text("dtype") + " cannot be given");
  return {kind->second, offset, Access::kNone};
}

uint32_t SizeOf(Argument::Kind kind) { return kind == Argument::kInt32 || kind == Argument::kFloat32 ? 4 : 8; }

int ParseLaunch(const std::string& tag, const std::string& where) {
  const int place = PlaceOf(tag);
  if (place < 0) Fail(where + ": unknown launch parameter " + tag);
  return place;
}

Kernel ParseKernel(const ffi::Any& value, const char* blob, size_t blob_bytes) {
  const std::string name = Fields(value, "Vulkan module").Text("name");
  const std::string where = "Vulkan module: kernel " + name;
  const Fields fields(value, where);
  Kernel kernel;
  kernel.name = name;
  for (const ffi::Any& argument : fields.List("args")) {
    kernel.arguments.push_back(ParseArgument(argument, where));
  }
  kernel.block_bytes = fields.Number("block_bytes");
  kernel.block_by_address = fields.Text("block") == "address";
  for (const Argument& argument : kernel.arguments) {
    if (argument.offset + SizeOf(argument.kind) > kernel.block_bytes) Fail(where + ": an argument outside its block");
  }
  if (fields.Has("given_up")) {
    kernel.given_up = static_cast<int>(fields.Number("given_up"));
    if (kernel.given_up + sizeof(uint64_t) > kernel.block_bytes) Fail(where + ": an argument outside its block");
  }
  if (!kernel.block_by_address && kernel.block_bytes > kMaxPushBytes) {
    Fail(where + ": " + std::to_string(kernel.block_bytes) + " bytes of arguments are more than can be pushed");
  }
  for (const ffi::Any& tag : fields.List("launch")) {
    kernel.launch.push_back(ParseLaunch(tag.cast<ffi::String>(), where));
  }
  const auto workgroup = fields.List("workgroup");
  if (workgroup.size() != 3) Fail(where + ": a workgroup has three sizes");
  for (size_t i = 0; i < 3; ++i) kernel.workgroup[i] = static_cast<uint32_t>(workgroup[i].cast<int64_t>());
  kernel.shared_bytes = fields.Number("shared_bytes");
  kernel.subgroup = fields.Number("subgroup");
  for (const ffi::Any& feature : fields.List("features")) {
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
  std::vector<Kernel> kernels;
  for (const ffi::Any& kernel : Fields::Parse(bytes + start, length, "Vulkan module").List("kernels")) {
    kernels.push_back(ParseKernel(kernel, bytes + blob, size - blob));
  }
  return kernels;
}

}  // namespace dspark::vulkan
