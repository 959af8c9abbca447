"""What shows only in a process of its own: several devices, failing drivers, the pipeline cache, and how it ends."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.vulkan.bare import process
from tests.vulkan.device import LAVAPIPE

_TWO = """
assert function("count")() == 2
first, second = ([Floats(device, x), Floats(device, x)] for device in range(2))
for device, pair in enumerate((first, second)):
    for _ in range(device + 1):
        run(kernel, *pair, 1.0)
np.testing.assert_array_equal(first[1].read(), 2 * x)
np.testing.assert_array_equal(second[1].read(), 3 * x)
for pair in ((first[0], second[0]), (second[0], first[0])):
    try:
        run(kernel, *pair, 1.0)
    except RuntimeError as error:
        assert "tensors of one call must be on one device" in str(error)
    else:
        raise AssertionError("tensors of two devices")
"""

# Everything is left as it is: memory, a module, a recording, commands that were not submitted.
_LEAVE = """
a, b = Floats(0, x), Floats(0, x)
run(kernel, a, b, 1.0)
np.testing.assert_array_equal(b.read(), 2 * x)
function("begin_recording")(0)
run(kernel, a, b, 1.0)
recording = function("end_recording")(0)
function("replay")(0, recording)
run(kernel, a, b, 1.0)
"""

_FAILING = """
def failure(work):
    try:
        work()
    except RuntimeError as error:
        print(error)

pairs = [[Floats(device, x), Floats(device, x)] for device in range(2)]
for pair in pairs:
    run(kernel, *pair, 1.0)
    np.testing.assert_array_equal(pair[1].read(), 2 * x)
folder = Path(sys.argv[1])
(folder / "full").touch()
failure(lambda: function("allocate")(0, 100 << 20))
(folder / "full").unlink()
function("release")(0, function("allocate")(0, 100 << 20))
(folder / "lost").touch()
failure(pairs[0][1].read)
failure(lambda: run(kernel, *pairs[0], 1.0))
run(kernel, *pairs[1], 1.0)
np.testing.assert_array_equal(pairs[1][1].read(), 3 * x)
function("release")(0, pairs[0][0].address)
"""

# Stands in for Vulkan's loader: with the file "lost" the queue that submits next is lost, with "full" memory is out.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
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
  snprintf(path, sizeof(path), "%s/%s", getenv("SHIM_FOLDER"), what);
  return access(path, F_OK) == 0;
}
static int AllocateMemory(void* device, const void* info, const void* callbacks, void* memory) {
  return Wanted("full") ? -2 : allocate(device, info, callbacks, memory);
}
static int QueueSubmit(void* queue, unsigned count, const void* infos, void* fence) {
  if (lost == NULL && Wanted("lost")) lost = queue;
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
Function vkGetInstanceProcAddr(void* instance, const char* name) {
  static Find find;
  if (find == NULL) find = (Find)dlsym(dlopen(getenv("REAL_LOADER"), RTLD_NOW), "vkGetInstanceProcAddr");
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


def test_two_devices(tmp_path: Path) -> None:
    process(_TWO, **two_devices(tmp_path))


def test_a_failing_device_says_so_and_the_other_goes_on(tmp_path: Path) -> None:
    loader = next(Path("/usr/lib").rglob("libvulkan.so.1"), None)
    if loader is None:
        pytest.skip("needs libvulkan.so.1 in /usr/lib")
    (tmp_path / "shim.c").write_text(_SHIM)
    shim = tmp_path / "lib" / "libvulkan.so.1"
    shim.parent.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, tmp_path / "shim.c", "-ldl"], check=True)
    variables = {"SHIM_FOLDER": str(tmp_path), "REAL_LOADER": str(loader), "LD_LIBRARY_PATH": str(shim.parent)}
    full, *lost = process(_FAILING, tmp_path, **variables, **two_devices(tmp_path))
    device = r"^Vulkan device 0 \(.+, .+\): "
    memory = r"104\.8 MB were asked for, \d+\.\d MB of \d+\.\d MB are free$"
    assert re.search(device + "vkAllocateMemory: VK_ERROR_OUT_OF_DEVICE_MEMORY; " + memory, full)
    assert len(lost) == 2
    for line in lost:
        assert re.search(device + r"the driver reports the device as lost \(VK_ERROR_DEVICE_LOST\)", line)


def test_without_a_driver_one_line_says_so(tmp_path: Path) -> None:
    none = str(tmp_path / "none.json")
    program = "try: function('count')()\nexcept RuntimeError as error: print(error)"
    (line,) = process(program, VK_DRIVER_FILES=none, VK_ICD_FILENAMES=none)
    assert line.startswith("no Vulkan driver found; install the GPU's (or mesa-vulkan-drivers)")


@pytest.mark.parametrize("end", ["", "function('shutdown')(); del kernel"])
def test_leaving_in_the_middle_and_without_a_cache(end: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process(_LEAVE + end, DSPARK_VULKAN_CACHE=str(tmp_path / "file" / "cache"))


def test_the_pipeline_cache_is_written_and_damage_is_mended(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    process(_LEAVE, DSPARK_VULKAN_CACHE=str(folder))
    (file,) = folder.iterdir()
    written = file.read_bytes()
    assert written.startswith(b"DSPVKC01")
    assert len(written) >= 16 + 32  # the sum, and a pipeline cache's own head
    file.write_bytes(written[:-1])
    process(_LEAVE, DSPARK_VULKAN_CACHE=str(folder))
    assert [other.name for other in folder.iterdir()] == [file.name]
    assert file.read_bytes() == written
