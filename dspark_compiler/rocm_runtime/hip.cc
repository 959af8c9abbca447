#include "hip.h"

#include <dlfcn.h>

#include "fields.h"

namespace dspark::rocm {
namespace {

// Newest first; the last is what development packages have.
constexpr const char* kLibraries[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"};
constexpr int kNameBytes = 256;

Hip Load() {
  void* library = nullptr;
  for (const char* name : kLibraries) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) Refuse("no HIP runtime (libamdhip64.so) found; install AMD's driver and ROCm 6 or later");
  auto find = [library](const char* name) {
    void* function = dlsym(library, name);
    if (function == nullptr) Refuse("libamdhip64 has no " + std::string(name) + "; install ROCm 6 or later");
    return function;
  };
  Hip hip;
#define DSPARK_LOAD(name, parameters) hip.name = reinterpret_cast<decltype(hip.name)>(find("hip" #name));
  DSPARK_HIP_FUNCTIONS(DSPARK_LOAD)
#undef DSPARK_LOAD
  hip.GetErrorString = reinterpret_cast<decltype(hip.GetErrorString)>(find("hipGetErrorString"));
  return hip;
}

}  // namespace

const Hip& Hip::Get() {
  static const Hip hip = Load();  // stays open: the driver leaves threads and exit handlers behind
  return hip;
}

std::string NameOf(int device) {
  char name[kNameBytes] = "";
  const bool known = Hip::Get().DeviceGetName(name, kNameBytes, device) == 0;
  return "device " + std::to_string(device) + (known ? " (" + std::string(name) + ")" : "");
}

void Check(int code, int device, const std::string& what) {
  if (code == 0) return;
  const Hip& hip = Hip::Get();
  hip.GetLastError();  // or it comes up again with the next call
  std::string message = what + " on " + NameOf(device) + ": " + hip.GetErrorString(code) + " (error " +
                        std::to_string(code) + ")";
  if (code == kErrorOutOfMemory) {
    size_t free = 0, total = 0;
    if (hip.MemGetInfo(&free, &total) == 0) {
      message += "; " + std::to_string(free >> 20) + " of " + std::to_string(total >> 20) + " MiB are free";
    }
  }
  if (code == kErrorNoBinary) message += "; the artifact is for another architecture, compile it for this one";
  Refuse(message);
}

}  // namespace dspark::rocm
