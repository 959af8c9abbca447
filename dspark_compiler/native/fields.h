/// What the descriptions of modules of kernels have in common: JSON objects, and errors of one line.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/json.h>

#include <cstdint>
#include <string>

namespace dspark {

/// Throws tvm_ffi's RuntimeError: one line, for whoever reads it has no stack trace.
[[noreturn]] inline void Refuse(const std::string& message) {
  TVM_FFI_THROW(RuntimeError) << message;
  TVM_FFI_UNREACHABLE();
}

/// The fields of one JSON object; ``where`` begins its errors.
class Fields {
 public:
  Fields(const tvm::ffi::Any& value, std::string where) : where_(std::move(where)) {
    auto object = value.try_cast<tvm::ffi::json::Object>();
    if (!object.has_value()) Refuse(where_ + ": is no JSON object");
    object_ = *object;
  }

  /// The object that a text is.
  static Fields Parse(const char* text, size_t bytes, const std::string& where) {
    tvm::ffi::String problem;
    const tvm::ffi::Any parsed = tvm::ffi::json::Parse(tvm::ffi::String(text, bytes), &problem);
    if (problem.size() != 0) Refuse(where + ": its description is no JSON: " + std::string(problem));
    return Fields(parsed, where);
  }

  template <typename T>
  T Get(const char* name) const {
    auto value = object_.Get(tvm::ffi::String(name));
    auto typed = value.has_value() ? value->template try_cast<T>() : std::optional<T>();
    if (!typed.has_value()) Refuse(where_ + ": lacks a field " + name + ", or it is of the wrong type");
    return *typed;
  }

  std::string Text(const char* name) const { return Get<tvm::ffi::String>(name); }

  tvm::ffi::Array<tvm::ffi::Any> List(const char* name) const { return Get<tvm::ffi::Array<tvm::ffi::Any>>(name); }

  uint32_t Number(const char* name) const {
    const int64_t value = Get<int64_t>(name);
    if (value < 0 || value > UINT32_MAX) Refuse(where_ + ": " + name + " is out of range");
    return static_cast<uint32_t>(value);
  }

  bool Has(const char* name) const { return object_.count(tvm::ffi::String(name)) != 0; }

  std::string TextOr(const char* name, const char* otherwise) const {
    return Has(name) ? Text(name) : std::string(otherwise);
  }

 private:
  std::string where_;
  tvm::ffi::json::Object object_;
};

/// Where a launch parameter goes: 0 to 2 for groups, 3 to 5 for threads, by x, y, z; -1 where it is none.
inline int PlaceOf(const std::string& tag) {
  static const char* const kTags[] = {"blockIdx.x",  "blockIdx.y",  "blockIdx.z",
                                      "threadIdx.x", "threadIdx.y", "threadIdx.z"};
  for (int i = 0; i < 6; ++i) {
    if (tag == kTags[i]) return i;
  }
  return -1;
}

}  // namespace dspark
