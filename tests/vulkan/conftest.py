"""Every test here has a device, and the validation layers find nothing."""

from collections.abc import Iterator

import pytest

from tests.vulkan.device import messages, need_vulkan


@pytest.fixture(autouse=True)
def valid() -> Iterator[None]:
    need_vulkan()
    yield
    assert messages() == []
