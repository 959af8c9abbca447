#include "kernel.h"

#include <cstring>
#include <unordered_map>

#include "fields.h"

namespace dspark::rocm {
namespace {

constexpr char kMagic[] = "DSPKHIP1";
constexpr size_t kMagicBytes = 8;
constexpr char kElf[] = "\177ELF";
constexpr const char* kWhere = "ROCm module";

Argument ParseArgument(const tvm::ffi::Any& value, const std::string& where) {
  static const std::unordered_map<std::string, Argument::Kind> kKinds = {
      {"buffer", Argument::kBuffer},   {"int32", Argument::kInt32},     {"uint32", Argument::kInt32},
      {"int64", Argument::kInt64},     {"uint64", Argument::kInt64},    {"float32", Argument::kFloat32},
      {"float64", Argument::kFloat64},
  };
  const Fields fields(value, where);
  auto kind = kKinds.find(fields.Text("kind"));
  if (kind == kKinds.end()) Refuse(where + ": type " + fields.Text("kind") + " cannot be given");
  return {kind->second, fields.Number("offset")};
}

uint32_t SizeOf(Argument::Kind kind) { return kind == Argument::kInt32 || kind == Argument::kFloat32 ? 4 : 8; }

Kernel ParseKernel(const tvm::ffi::Any& value) {
  Kernel kernel;
  kernel.name = Fields(value, kWhere).Text("name");
  const std::string where = std::string(kWhere) + ": kernel " + kernel.name;
  const Fields fields(value, where);
  kernel.argument_bytes = fields.Number("argument_bytes");
  for (const tvm::ffi::Any& each : fields.List("args")) {
    const Argument argument = ParseArgument(each, where);
    if (argument.offset + SizeOf(argument.kind) > kernel.argument_bytes) Refuse(where + ": an argument outside");
    kernel.arguments.push_back(argument);
  }
  for (const tvm::ffi::Any& tag : fields.List("launch")) {
    kernel.launch.push_back(PlaceOf(tag.cast<tvm::ffi::String>()));
    if (kernel.launch.back() < 0) Refuse(where + ": an unknown launch parameter");
  }
  kernel.most_threads = fields.Number("most_threads");
  return kernel;
}

}  // namespace

ParsedModule ParseModule(const char* bytes, size_t size) {
  uint64_t length = 0;
  const size_t start = kMagicBytes + sizeof(length);
  if (size < start || std::memcmp(bytes, kMagic, kMagicBytes) != 0) {
    Refuse("ROCm module: not one this version reads");
  }
  std::memcpy(&length, bytes + kMagicBytes, sizeof(length));
  if (length > size - start) Refuse("ROCm module: cut short");
  const size_t code = start + length;
  if (code + sizeof(kElf) > size || std::memcmp(bytes + code, kElf, sizeof(kElf) - 1) != 0) {
    Refuse("ROCm module: holds no code object");
  }
  const Fields fields = Fields::Parse(bytes + start, length, kWhere);
  ParsedModule module;
  module.arch = fields.Text("arch");
  for (const tvm::ffi::Any& kernel : fields.List("kernels")) module.kernels.push_back(ParseKernel(kernel));
  module.code = code;
  return module;
}

}  // namespace dspark::rocm
