"""Puts our runtime libraries into the wheel, where what compiling them needs is at hand (no build isolation)."""

import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RuntimeHook(BuildHookInterface):
    """Without a C++ compiler or headers the wheel is one of Python alone, and libraries are built at first use."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds the libraries and adds them; an editable install builds at first use, too."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from dspark_compiler import rocm_runtime, vulkan_runtime

        self._folder = tempfile.TemporaryDirectory(prefix="dspark-runtimes-")
        for library in (vulkan_runtime.library, rocm_runtime.library):
            if missing := library.missing():
                self.app.display_info(
                    f"wheel without the {library.target} runtime, which needs {' and '.join(missing)}"
                )
                continue
            built = Path(self._folder.name) / library.library_name()
            library.build(built)
            build_data["force_include"][str(built)] = f"dspark_compiler/{library.folder.name}/{built.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was built; the wheel has a copy."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
