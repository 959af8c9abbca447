"""From a lowered module to a scheduled one: records first, rules for what has none."""

import warnings
from pathlib import Path
from typing import Any

import tvm

from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import workload_of
from dspark_compiler.schedules.linear_space import LinearSpace
from dspark_compiler.schedules.rules import default_rules
from dspark_compiler.schedules.search import apply_trace, function_key, searchable


def apply_schedules(module: tvm.IRModule, target: Any, isa: VectorIsa, records: Records | None = None) -> tvm.IRModule:
    """Schedules every function of a lowered module.

    Kernel templates come with their schedule from lowering, where the same records were asked.

    Args:
        module: as lower() returns it; left as it is.
        target: the tvm.target.Target to schedule for.
        isa: its vectors.
        records: tuning records, or None for rules alone.

    Raises:
        InputError: a file of records that cannot be read.
    """
    result = module.clone()
    for variable, function in searchable(module):
        record = None if records is None else records.searched(function_key(function))
        if record is None or record.trace is None:
            continue
        try:
            result[variable] = apply_trace(function, record.trace)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1:]
            warnings.warn(f"tuning record {record.key} does not fit {record.name}: {reason}; skipped", stacklevel=2)
    with target:
        return default_rules(isa)(result)


def export_records(module: tvm.IRModule, records: Records, linears: LinearSpace | None, folder: Path) -> None:
    """Writes the records that concern a lowered module below ``folder``, for its artifact; nothing if there are none.

    Raises:
        InputError: a file of records that cannot be read or written.
    """
    tags = (workload_of(function) for function in module.functions.values() if isinstance(function, tvm.tirx.PrimFunc))
    works = set() if linears is None else {linears.key(work) for work in tags if work is not None}
    keys = [function_key(function) for _, function in searchable(module)]
    records.export(folder, sorted(works, key=str), keys)
