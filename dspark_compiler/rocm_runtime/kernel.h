/// A kernel as a module describes it.
///
/// The bytes of a module, little endian: the eight letters "DSPKHIP1"; a 64-bit count; so many bytes of JSON; the
/// code object that holds all kernels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dspark::rocm {

/// One argument: where it lies among the others, and what it is.
struct Argument {
  enum Kind { kBuffer, kInt32, kInt64, kFloat32, kFloat64 };
  Kind kind;
  uint32_t offset;
};

struct Kernel {
  std::string name;
  std::vector<Argument> arguments;
  uint32_t argument_bytes = 0;
  std::vector<int> launch;  // of each further argument: 0 to 2 for groups, 3 to 5 for threads, by x, y, z
  uint32_t most_threads = 0;  // of a work group
};

struct ParsedModule {
  std::string arch;
  std::vector<Kernel> kernels;
  size_t code = 0;  // where it begins in the module's bytes
};

/// Throws where the bytes are no module, naming the kernel and what is wrong with it.
ParsedModule ParseModule(const char* bytes, size_t size);

}  // namespace dspark::rocm
