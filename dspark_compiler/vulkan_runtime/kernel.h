/// A kernel as a module describes it, and reading and writing such descriptions.
///
/// The bytes of a module, little endian: the eight letters "DSPKVK01"; a 64-bit count; so many bytes of JSON; zeros up
/// to a multiple of 4 from the beginning; the SPIR-V of all kernels.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace dspark::vulkan {

/// What a kernel does with a buffer. Reads and writes are bits; of the others, each is all it does with it.
enum class Access {
  kNone = 0,
  kRead = 1,
  kWrite = 2,
  kBoth = 3,
  kExchange = 4,  // by atomic operations, which its own work groups know the order of
  kAwait = 5,     // reads it only after it has seen that it is there
  kPublish = 6,   // writes it for launches that await it
  kUnset = 7,     // before it is published
};

/// One argument: where it lies in the argument block, and what it is.
struct Argument {
  enum Kind { kBuffer, kInt32, kInt64, kFloat32, kFloat64 };
  Kind kind;
  uint32_t offset;
  Access access;  // of a buffer
};

struct Kernel {
  std::string name;
  std::vector<Argument> arguments;
  uint32_t block_bytes = 0;
  int given_up = -1;                   // where in the block the address of the word lies that it sets when it gives up
  bool block_by_address = false;       // too long to be pushed: it is put into memory, and its address pushed
  std::vector<int> launch;             // of each further argument: 0 to 2 for groups, 3 to 5 for threads, by x, y, z
  std::array<uint32_t, 3> workgroup{1, 1, 1};
  uint32_t shared_bytes = 0;
  uint32_t subgroup = 0;               // 0: any
  std::vector<std::string> features;
  const uint32_t* spirv = nullptr;     // in the module's bytes
  size_t spirv_bytes = 0;
};

constexpr uint32_t kMaxPushBytes = 128;  // every device takes as many

/// The kernels of a module; their SPIR-V points into ``bytes``, which must begin at a multiple of 4.
/// Throws where it is no module, naming the kernel and what is wrong with it.
std::vector<Kernel> ParseKernels(const char* bytes, size_t size);

}  // namespace dspark::vulkan
