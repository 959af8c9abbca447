"""Vulkan as a process may find it: with two devices, or with one that fails when a file says so."""

import subprocess
from pathlib import Path

import pytest

from tests.vulkan.device import LAVAPIPE

# Stands in for Vulkan's loader: with the file "full" memory is out; with "lost" a queue is, once so many submissions as
# the file says were made.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef void (*Function)(void);
typedef Function (*Find)(void*, const char*);
typedef int (*Submit)(void*, unsigned, const void*, void*);
typedef int (*Allocate)(void*, const void*, const void*, void*);
static Find find_device;
static Submit submit;
static Allocate allocate;
static void* lost;
static int Wanted(const char* what) {
  char path[4096];
  int after = 0;
  snprintf(path, sizeof(path), "%s/%s", getenv("SHIM_FOLDER"), what);
  FILE* file = fopen(path, "r");
  if (file == NULL) return -1;
  fscanf(file, "%d", &after);
  fclose(file);
  return after;
}
static int AllocateMemory(void* device, const void* info, const void* callbacks, void* memory) {
  return Wanted("full") >= 0 ? -2 : allocate(device, info, callbacks, memory);
}
static int QueueSubmit(void* queue, unsigned count, const void* infos, void* fence) {
  static int made = 0;
  int after = lost == NULL ? Wanted("lost") : -1;
  if (after >= 0 && made++ >= after) lost = queue;
  return queue == lost ? -4 : submit(queue, count, infos, fence);
}
static Function FindDevice(void* device, const char* name) {
  Function found = find_device(device, name);
  if (strcmp(name, "vkQueueSubmit") == 0) {
    submit = (Submit)found;
    return (Function)QueueSubmit;
  }
  if (strcmp(name, "vkAllocateMemory") == 0) {
    allocate = (Allocate)found;
    return (Function)AllocateMemory;
  }
  return found;
}
static void* Real(const char* name) {
  static void* loader;
  if (loader == NULL) loader = dlopen(getenv("REAL_LOADER"), RTLD_NOW);
  return dlsym(loader, name);
}
#define FORWARD(name) \
  int name(void* a, void* b, void* c) { return ((int (*)(void*, void*, void*))Real(#name))(a, b, c); }
FORWARD(vkCreateInstance)
FORWARD(vkDestroyInstance)
FORWARD(vkEnumeratePhysicalDevices)
FORWARD(vkGetPhysicalDeviceFeatures2)
FORWARD(vkGetPhysicalDeviceMemoryProperties)
FORWARD(vkGetPhysicalDeviceProperties2)
Function vkGetInstanceProcAddr(void* instance, const char* name) {
  static Find find;
  if (find == NULL) find = (Find)Real("vkGetInstanceProcAddr");
  Function found = find(instance, name);
  if (strcmp(name, "vkGetDeviceProcAddr") != 0) return found;
  find_device = (Find)found;
  return (Function)FindDevice;
}
"""


def two_devices(folder: Path) -> dict[str, str]:
    """Variables that let a process see two devices: lavapipe's driver under two names."""
    if not LAVAPIPE.exists():
        pytest.skip("needs lavapipe (Debian: mesa-vulkan-drivers)")
    second = folder / "second.json"
    second.write_text(LAVAPIPE.read_text())
    both = f"{LAVAPIPE}:{second}"
    return {"VK_DRIVER_FILES": both, "VK_ICD_FILENAMES": both}


def failing_loader(folder: Path) -> dict[str, str]:
    """Variables that have a process find a loader which looks into ``folder`` for what is to fail."""
    loader = next(Path("/usr/lib").rglob("libvulkan.so.1"), None)
    if loader is None:
        pytest.skip("needs libvulkan.so.1 in /usr/lib")
    (folder / "shim.c").write_text(_SHIM)
    shim = folder / "lib" / "libvulkan.so.1"
    shim.parent.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, folder / "shim.c", "-ldl"], check=True)
    return {"SHIM_FOLDER": str(folder), "REAL_LOADER": str(loader), "LD_LIBRARY_PATH": str(shim.parent)}
