"""Products of few rows without matrices: a row's bits, however it is handed over and whatever rows come with it."""

import numpy as np
import pytest

from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.eighths import UNIT
from dspark_compiler.schedules.simt.row_schedule import candidate_schedules
from dspark_compiler.schedules.simt.stream_output import PLAIN, Options
from dspark_compiler.schedules.simt.weights import pack_tiles
from dspark_compiler.schedules.vulkan.stream_linear import stream_linear
from tests.backends.vulkan.shaders import run
from tests.vulkan.device import need_vulkan


@pytest.mark.parametrize("overlap", ["0", "1"])
def test_a_row_in_eighths_has_the_bits_of_one_among_many(overlap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_vulkan()
    monkeypatch.setenv("DSPARK_VULKAN_MATRICES", "0")
    monkeypatch.setenv("DSPARK_VULKAN_OVERLAP", overlap)
    random = np.random.default_rng(5)
    x = (random.standard_normal((12, 128)) * np.geomspace(1e-6, 1e5, 12)[:, None]).astype(np.float32)
    w = pack_tiles((random.standard_normal((32, 128)) * 0.1).astype(np.float16))
    eighths = (x / UNIT).astype(np.float16)

    def product(rows: int, given: np.ndarray, options: Options) -> np.ndarray:
        work = LinearWorkload(rows, 32, 128, "float16")
        kernel = stream_linear("main", work, candidate_schedules(work)[0], options)
        return run(kernel, given[:rows], w, np.full((rows, 32), np.nan, np.float32))[-1]

    many = product(12, x, PLAIN)
    for rows in (1, 8):
        np.testing.assert_array_equal(product(rows, eighths, Options(reads_eighths=True)), many[:rows])
        np.testing.assert_array_equal(product(rows, x, PLAIN), many[:rows])
