#include "cache_file.h"

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace dspark::vulkan {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMagic = 0x3130434b56505344;  // "DSPVKC01"

/// FNV-1a (Fowler, Noll, Vo), 64 bits.
uint64_t Sum(const std::vector<char>& data) {
  uint64_t sum = 0xcbf29ce484222325;
  for (char byte : data) sum = (sum ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  return sum;
}

std::string Folder() {
  if (const char* named = std::getenv("DSPARK_VULKAN_CACHE")) return named;
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return std::string(cache) + "/dspark-compile/vulkan";
  const char* home = std::getenv("HOME");
  return home == nullptr ? "" : std::string(home) + "/.cache/dspark-compile/vulkan";
}

}  // namespace

std::string CacheFile(const VkPhysicalDeviceProperties& properties) {
  const std::string folder = Folder();
  if (folder.empty()) return "";
  char name[128];
  int end = std::snprintf(name, sizeof(name), "/%04x-%04x-%08x-", properties.vendorID, properties.deviceID,
                          properties.driverVersion);
  for (uint8_t byte : properties.pipelineCacheUUID) {
    end += std::snprintf(name + end, sizeof(name) - end, "%02x", byte);
  }
  return folder + name + ".bin";
}

std::vector<char> ReadCache(const std::string& file) {
  if (file.empty()) return {};
  std::ifstream stream(file, std::ios::binary);
  uint64_t head[2] = {0, 0};
  if (!stream.read(reinterpret_cast<char*>(head), sizeof(head)) || head[0] != kMagic) return {};
  std::vector<char> data{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  return Sum(data) == head[1] ? data : std::vector<char>();
}

void WriteCache(const std::string& file, const std::vector<char>& data) {
  std::error_code ignored;
  fs::create_directories(fs::path(file).parent_path(), ignored);
  const std::string partial = file + "." + std::to_string(getpid());
  const uint64_t head[2] = {kMagic, Sum(data)};
  std::ofstream stream(partial, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(head), sizeof(head));
  stream.write(data.data(), static_cast<std::streamsize>(data.size()));
  stream.close();
  if (stream) {
    fs::rename(partial, file, ignored);
  } else {
    fs::remove(partial, ignored);
  }
}

}  // namespace dspark::vulkan
