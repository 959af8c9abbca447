"""An artifact brings the Vulkan library it was compiled with, which may lack what a newer runtime asks of it."""

import pytest

from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.vulkan import VulkanRuntime
from tests.vulkan.device import need_vulkan


def test_an_older_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    need_vulkan()
    function = VulkanRuntime._function
    monkeypatch.setattr(VulkanRuntime, "_function", lambda self, name: function(self, name.replace("_all", "_none")))
    with pytest.raises(
        DeviceError, match=r"^the artifact's .+ is of an older version, without copy_none; compile again$"
    ):
        VulkanRuntime(0)
