/// Errors: one line each, for whoever reads them has no stack trace.
#pragma once

#include <string>

#include "loader.h"

namespace dspark::vulkan {

/// Throws tvm_ffi's RuntimeError.
[[noreturn]] void Fail(const std::string& message);

/// "VK_ERROR_DEVICE_LOST (the device stopped answering)" and its like.
std::string Describe(VkResult result);

}  // namespace dspark::vulkan
