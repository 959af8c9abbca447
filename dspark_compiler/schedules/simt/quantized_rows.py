"""Keys and values in a byte an element: a team makes the codes of a row and its scale.

The arithmetic is that of graph/reference.py, ``quantized``.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.cache_rows import NewSlot, Problem, Tensors
from dspark_compiler.schedules.simt.group_counts import held, variable
from dspark_compiler.schedules.simt.threads import TEAM, launch, registers, team_max
from dspark_compiler.schedules.tir import Expr, when

_THREADS = 128
_TEAMS = _THREADS // TEAM


def write_new_codes(problem: Problem, tensors: Tensors) -> None:
    """Launches the writing of "k" and "v" float32 [b,G,S,*] to where new tokens go, with a scale a row."""
    shape = problem.shape
    for name, dim in (("k", shape.head_dim), ("v", shape.value_dim)):
        with launch((-(-shape.kv_heads // _TEAMS), shape.width, shape.rows), _THREADS) as (group, token, row, thread):
            number, lane = T.Bind(group * _TEAMS + thread // TEAM), T.Bind(thread % TEAM)
            # Teams behind the last head take it once more and store nothing, so that all take part in maxima.
            head = T.Bind(T.min(number, shape.kv_heads - 1))
            slot = NewSlot(problem, tensors, row, token)
            own = -(-dim // TEAM)
            values, peak = registers(own), variable(T.float32(0.0), "float32")
            for i in range(own):
                value = tensors[name][row, head, token, T.min(i * TEAM + lane, dim - 1)]
                T.buffer_store(values, value, [i])
                T.buffer_store(peak, T.max(peak[0], T.abs(values[i])), [0])
            storage = problem.form.storage
            assert storage.largest is not None
            scale = held(team_max(peak[0]) / T.float32(storage.largest), "float32")
            divisor = held(T.Select(scale == T.float32(0.0), T.float32(1.0), scale), "float32")
            with when(T.And(number < shape.kv_heads, slot.fits)):
                for i in range(own):
                    d: Expr = T.Bind(i * TEAM + lane)
                    with when(d < dim):
                        slot.store_as_is(name, head, d, storage.encode(values[i] / divisor))
                with when(lane == 0):
                    slot.store_scale(name, head, scale)
                if name == "v":
                    slot.store_position(head, lane == 0)
