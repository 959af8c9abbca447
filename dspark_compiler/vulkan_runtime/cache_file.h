/// The file of a driver's pipeline cache.
#pragma once

#include <string>
#include <vector>

#include "loader.h"

namespace dspark::vulkan {

/// $DSPARK_VULKAN_CACHE, else dspark-compile/vulkan in the XDG cache folder; the name holds device and driver.
/// Empty where the variable is, or where there is no home.
std::string CacheFile(const VkPhysicalDeviceProperties& properties);

/// What was written; nothing where there is no such file or it is damaged, which drivers do not always notice.
std::vector<char> ReadCache(const std::string& file);

/// Replaces the file in one step; leaves things as they are where that fails.
void WriteCache(const std::string& file, const std::vector<char>& data);

}  // namespace dspark::vulkan
