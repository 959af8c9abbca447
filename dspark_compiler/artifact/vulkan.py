"""Vulkan's loader and the devices its drivers offer, asked by ctypes: nothing needs to be installed beside it.

Structures and numbers are those of vulkan_core.h.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char, c_char_p, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dspark_compiler.artifact.vulkan_matrices import multiplies_matrices

OLDEST = (1, 2)

_APPLICATION_INFO, _INSTANCE_INFO = 0, 1  # VkStructureType
_PROPERTIES, _FEATURES = 1000059001, 1000059000
_DRIVER, _SUBGROUP, _ALLOCATION, _SUBGROUP_RANGE = 1000196000, 1000094000, 1000168000, 1000225000
_FEATURES_1_1, _FEATURES_1_2 = 49, 51
_NO_DRIVER = -9  # VK_ERROR_INCOMPATIBLE_DRIVER
_COMPUTE_STAGE, _SHUFFLES, _LOCAL_HEAP = 0x20, 0x10, 1

# Where features stand in VkPhysicalDeviceFeatures and in the structures of Vulkan 1.1 and 1.2, by our names.
_CORE = {"float64": 39, "int64": 40, "int16": 41}
_OF_1_1 = {"storage16": 0}
_OF_1_2 = {"storage8": 2, "float16": 7, "int8": 8, "timeline": 37, "addresses": 38, "memory_model": 41}
_MATRIX_SUBGROUP = 32  # threads that hold a matrix together in our kernels
_LEAST_SUBGROUP = 8  # what kernels count on (schedules/simt/threads.py)
_KERNELS_NEED = frozenset({"int16", "int64", "storage16", "subgroup_shuffle"})
_NEEDED = {"timeline": "timeline semaphores", "addresses": "buffer device addresses"}


@dataclass(frozen=True)
class VulkanDevice:
    """One device; ``features`` that kernels may use, by the names modules have for them.

    Attributes:
        driver: its name and version in the vendor's words.
        version: of Vulkan, as in (1, 3).
        subgroup_size: threads that run together, ``subgroup_range`` what a kernel may ask for instead.
        memory_bytes: of the device's own heap.
        largest_bytes: one allocation can have.
        problem: why it cannot be used; None where it can.
        family: vendor and device as their numbers, for what was measured on its like.
    """

    name: str
    driver: str
    version: tuple[int, int]
    subgroup_size: int
    subgroup_range: tuple[int, int]
    features: frozenset[str]
    memory_bytes: int
    largest_bytes: int
    problem: str | None = None
    family: str = ""

    @property
    def lacking(self) -> str:
        """What kernels cannot do without and it has not, by our names; empty where there is nothing."""
        return ", ".join(sorted(_KERNELS_NEED - self.features))

    def runs(self, arch: str) -> bool:
        """Whether kernels for "generic" or "subgroup32" and its like run on it."""
        if self.problem is not None or self.subgroup_size < _LEAST_SUBGROUP or self.lacking:
            return False
        size = arch.removeprefix("subgroup")
        if not size.isdigit():
            return arch == "generic"
        low, high = self.subgroup_range
        return int(size) == self.subgroup_size or low <= int(size) <= high


@dataclass(frozen=True)
class Vulkan:
    """The loader's devices, in its order; ``problem`` is why there are none."""

    devices: tuple[VulkanDevice, ...]
    problem: str | None = None


def find_vulkan() -> Vulkan | None:
    """This machine's; None where no loader is installed."""
    try:
        library = ctypes.CDLL("libvulkan.so.1")
        library.vkGetPhysicalDeviceFeatures2.argtypes = (c_void_p, c_void_p)
    except (OSError, AttributeError):
        return None
    library.vkGetPhysicalDeviceProperties2.argtypes = (c_void_p, c_void_p)
    library.vkGetPhysicalDeviceMemoryProperties.argtypes = (c_void_p, c_void_p)
    library.vkEnumeratePhysicalDevices.argtypes = (c_void_p, c_void_p, c_void_p)
    library.vkDestroyInstance.argtypes = (c_void_p, c_void_p)
    application = _Application(_APPLICATION_INFO, apiVersion=1 << 22 | 3 << 12)
    info = _Instance(_INSTANCE_INFO, pApplicationInfo=ctypes.pointer(application))
    instance = c_void_p()
    code = library.vkCreateInstance(byref(info), None, byref(instance))
    if code:
        return Vulkan((), "no driver is installed" if code == _NO_DRIVER else f"vkCreateInstance: error {code}")
    try:
        count = c_uint32()
        library.vkEnumeratePhysicalDevices(instance, byref(count), None)
        handles = (c_uint64 * count.value)()
        library.vkEnumeratePhysicalDevices(instance, byref(count), handles)
        devices = tuple(_device(library, instance, handle) for handle in handles[: count.value])
    finally:
        library.vkDestroyInstance(instance, None)
    return Vulkan(devices, None if devices else "the drivers offer no device")


def _device(library: ctypes.CDLL, instance: Any, handle: int) -> VulkanDevice:
    driver, subgroup = _Driver(_DRIVER), _Subgroup(_SUBGROUP)
    allocation, sizes = _Allocation(_ALLOCATION), _SubgroupRange(_SUBGROUP_RANGE)
    found = _Properties(_PROPERTIES)
    library.vkGetPhysicalDeviceProperties2(handle, byref(found))
    version = (found.apiVersion >> 22 & 0x7F, found.apiVersion >> 12 & 0x3FF)
    name = found.deviceName.decode(errors="replace")
    if version < OLDEST:
        problem = f"offers Vulkan {version[0]}.{version[1]}, {OLDEST[0]}.{OLDEST[1]} is needed"
        return VulkanDevice(name, "", version, 0, (0, 0), frozenset(), _memory(library, handle), 0, problem)
    _chain(found, driver, subgroup, allocation, *([sizes] if version > OLDEST else []))
    library.vkGetPhysicalDeviceProperties2(handle, byref(found))
    core, of_1_1, of_1_2 = _Features(_FEATURES), _Features11(_FEATURES_1_1), _Features12(_FEATURES_1_2)
    _chain(core, of_1_1, of_1_2)
    library.vkGetPhysicalDeviceFeatures2(handle, byref(core))
    places = ((core, _CORE), (of_1_1, _OF_1_1), (of_1_2, _OF_1_2))
    features = {name for structure, names in places for name, place in names.items() if structure.values[place]}
    if subgroup.supportedStages & _COMPUTE_STAGE and subgroup.supportedOperations & _SHUFFLES:
        features.add("subgroup_shuffle")
    if "memory_model" in features and multiplies_matrices(library, instance, handle):
        features.add("cooperative_matrix")
    lacking = [text for name, text in _NEEDED.items() if name not in features]
    sizable = bool(sizes.requiredSubgroupSizeStages & _COMPUTE_STAGE)
    widths = (sizes.minSubgroupSize, sizes.maxSubgroupSize) if sizable else (0, 0)
    if subgroup.subgroupSize != _MATRIX_SUBGROUP and not widths[0] <= _MATRIX_SUBGROUP <= widths[1]:
        features.discard("cooperative_matrix")
    words = (driver.driverName.decode(errors="replace"), driver.driverInfo.decode(errors="replace"))
    return VulkanDevice(
        name=name,
        driver=" ".join(filter(None, words)),
        version=version,
        subgroup_size=subgroup.subgroupSize,
        subgroup_range=widths,
        features=frozenset(features - _NEEDED.keys()),
        memory_bytes=_memory(library, handle),
        largest_bytes=allocation.maxMemoryAllocationSize,
        problem=f"lacks {' and '.join(lacking)}" if lacking else None,
        family=f"{found.vendorID:04x}-{found.deviceID:04x}",
    )


def _memory(library: ctypes.CDLL, handle: int) -> int:
    memory = _Memory()
    library.vkGetPhysicalDeviceMemoryProperties(handle, byref(memory))
    heaps = memory.heaps[: memory.heapCount]
    return max((heap.size for heap in heaps if heap.flags & _LOCAL_HEAP), default=0)


def _chain(*structures: Any) -> None:
    for one, following in pairwise(structures):
        one.pNext = ctypes.cast(byref(following), c_void_p)


def _structure(name: str, *fields: tuple[str, Any]) -> Any:
    """A structure that says what it is and what follows it."""
    return type(name, (ctypes.Structure,), {"_fields_": [("sType", c_int32), ("pNext", c_void_p), *fields]})


def _bools(count: int) -> Sequence[tuple[str, Any]]:
    return [("values", c_uint32 * count)]


_Application = _structure(
    "_Application",
    *[("pApplicationName", c_char_p), ("applicationVersion", c_uint32)],
    *[("pEngineName", c_char_p), ("engineVersion", c_uint32), ("apiVersion", c_uint32)],
)
_Instance = _structure(
    "_Instance",
    *[("flags", c_uint32), ("pApplicationInfo", POINTER(_Application))],
    *[("enabledLayerCount", c_uint32), ("ppEnabledLayerNames", c_void_p)],
    *[("enabledExtensionCount", c_uint32), ("ppEnabledExtensionNames", c_void_p)],
)
_Properties = _structure(
    "_Properties",
    *[("apiVersion", c_uint32), ("driverVersion", c_uint32), ("vendorID", c_uint32), ("deviceID", c_uint32)],
    *[("deviceType", c_int32), ("deviceName", c_char * 256), ("pipelineCacheUUID", c_uint8 * 16)],
    *[("limits", c_uint64 * 63), ("sparse", c_uint32 * 5)],
)
_Driver = _structure(
    "_Driver",
    *[("driverID", c_int32), ("driverName", c_char * 256), ("driverInfo", c_char * 256), ("conformance", c_uint8 * 4)],
)
_Subgroup = _structure(
    "_Subgroup",
    *[("subgroupSize", c_uint32), ("supportedStages", c_uint32), ("supportedOperations", c_uint32)],
    ("quadOperationsInAllStages", c_uint32),
)
_Allocation = _structure("_Allocation", ("maxPerSetDescriptors", c_uint32), ("maxMemoryAllocationSize", c_uint64))
_SubgroupRange = _structure(
    "_SubgroupRange",
    *[("minSubgroupSize", c_uint32), ("maxSubgroupSize", c_uint32)],
    *[("maxComputeWorkgroupSubgroups", c_uint32), ("requiredSubgroupSizeStages", c_uint32)],
)
_Features = _structure("_Features", *_bools(55))
_Features11 = _structure("_Features11", *_bools(12))
_Features12 = _structure("_Features12", *_bools(47))


class _Heap(ctypes.Structure):
    _fields_ = (("size", c_uint64), ("flags", c_uint32))


class _Memory(ctypes.Structure):
    _fields_ = (("typeCount", c_uint32), ("types", c_uint32 * 64), ("heapCount", c_uint32), ("heaps", _Heap * 16))
