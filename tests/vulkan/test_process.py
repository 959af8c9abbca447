"""What shows only in a process of its own: several devices, failing drivers, the pipeline cache, and how it ends."""

import re
from pathlib import Path

import pytest

from tests.vulkan.bare import process
from tests.vulkan.drivers import failing_loader, two_devices

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


def test_two_devices(tmp_path: Path) -> None:
    process(_TWO, **two_devices(tmp_path))


def test_a_failing_device_says_so_and_the_other_goes_on(tmp_path: Path) -> None:
    full, *lost = process(_FAILING, tmp_path, **failing_loader(tmp_path), **two_devices(tmp_path))
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
    mended = file.read_bytes()  # drivers may write another number here and there
    assert (mended[:8], len(mended)) == (written[:8], len(written))
