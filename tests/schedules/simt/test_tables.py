"""Small tables of which several nodes read, against numpy."""

import numpy as np

from dspark_compiler.schedules.simt.tables import columns, rope_tables
from tests.backends.vulkan.shaders import run
from tests.schedules.kernels import normal
from tests.vulkan.device import need_vulkan


def test_tables_of_rotations() -> None:
    need_vulkan()
    positions, frequencies = np.array([0, 1, 77, 4095]), (1e4 ** -np.linspace(0, 1, 20)).astype(np.float32)
    outs = [np.zeros((4, 40), np.float32) for _ in range(2)]
    *_, cos, sin = run(rope_tables("main", 4, 20), positions, frequencies, *outs)
    angles = np.tile(positions[:, None].astype(np.float32) * frequencies, 2)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)


def test_columns() -> None:
    need_vulkan()
    x = normal(3, 5)
    _, *found = run(columns("main", 3, 5, "float32"), x, *(np.zeros(3, np.float32) for _ in range(5)))
    np.testing.assert_array_equal(np.stack(found, 1), x)
