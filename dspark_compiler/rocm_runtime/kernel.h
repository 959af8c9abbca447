/// A kernel as a module describes it.
///
/// The bytes of a module, little endian: the eight letters "DSPKHIP1"; a 64-bit count; so many bytes of JSON; zeros up
/// to a multiple of 4096 from the beginning; the code object that holds all kernels.
#pragma once

#include <array>
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
  std::array<uint32_t, 3> threads{1, 1, 1};
};

struct ParsedModule {
  std::string arch;
  std::vector<Kernel> kernels;
  const char* code = nullptr;  // in the module's bytes
};

/// Throws where the bytes are no module, naming the kernel and what is wrong with it.
ParsedModule ParseModule(const char* bytes, size_t size);

}  // namespace dspark::rocm
