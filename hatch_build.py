"""Puts our Vulkan runtime library into the wheel, where what compiling it needs is at hand (no build isolation)."""

import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class VulkanRuntimeHook(BuildHookInterface):
    """Without a C++ compiler or headers the wheel is one of Python alone, and the library is built at first use."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds the library and adds it; an editable install builds at first use, too."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from dspark_compiler.vulkan_runtime import library

        if missing := library.missing():
            self.app.display_info(f"wheel without the Vulkan runtime, which needs {' and '.join(missing)}")
            return
        self._folder = tempfile.TemporaryDirectory(prefix="dspark-vulkan-")
        built = Path(self._folder.name) / library.library_name()
        library.build(built)
        build_data["force_include"][str(built)] = f"dspark_compiler/vulkan_runtime/{built.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was built; the wheel has a copy."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
