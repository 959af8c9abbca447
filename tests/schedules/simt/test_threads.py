"""What the invocations of a team do together."""

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.threads import TEAM, launch, team_sum, team_sums
from dspark_compiler.schedules.tir import Arg, Buffer, kernel
from tests.backends.vulkan.shaders import run
from tests.vulkan.device import need_vulkan

_THREADS = 32


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_several_sums_have_the_bits_of_one_after_the_other(count: int) -> None:
    need_vulkan()

    def body(x: Buffer, at_once: Buffer, one_by_one: Buffer) -> None:
        with launch((1,), _THREADS) as (_, thread):
            lane, team = T.Bind(thread % TEAM), T.Bind(thread // TEAM)
            total = team_sums([x[n, thread] for n in range(count)], lane)
            with T.If(lane < count), T.Then():
                T.buffer_store(at_once, total, [team, lane])
            for n in range(count):
                T.buffer_store(one_by_one, team_sum(x[n, thread]), [team, n])

    teams = _THREADS // TEAM
    args = [Arg("x", (count, _THREADS)), *(Arg(name, (teams, count)) for name in ("at_once", "one_by_one"))]
    x = np.random.default_rng(count).standard_normal((count, _THREADS)).astype(np.float32)
    nothing = np.full((teams, count), np.nan, np.float32)
    _, at_once, one_by_one = run(kernel("main", args, body), x, nothing, nothing)
    np.testing.assert_array_equal(at_once, one_by_one)
    np.testing.assert_allclose(at_once, x.reshape(count, teams, TEAM).sum(-1).T, atol=1e-5)
