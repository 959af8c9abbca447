"""What a policy scores slots by, where its kernel needs a workspace."""

from typing import Any

from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of, tensor_args
from dspark_compiler.lowering.pruning_converters import cache_name, cache_shape
from dspark_compiler.schedules.attention_shape import Scoring
from dspark_compiler.schedules.simt import attention_mass as kernels


def attention_mass(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.attention_mass(ring, k_cache, …)."""
    given = bound_args(node)
    shape = cache_shape(given["k_cache"], given["k_scale"])
    _, heads, places, _ = shape_of(given["ring"])
    scoring = Scoring(given["scale"], given["window"], given["softcap"], given["sinks"] is not None)
    queries = kernels.Queries(heads, places, given["last"], bounded=given["pending"] is not None)
    dtype = importer.plan.states[given["k_cache"].meta["ref"]].dtype
    name = identifier(f"{cache_name('attention_mass', shape)}_{queries}_{scoring}")
    kernel, workspace = kernels.attention_mass(name, shape, scoring, queries, dtype)
    outs = [PhysicalTensor(shape_of(node), "float32"), PhysicalTensor(workspace, "float32")]
    return importer.call_many(kernel, [importer.env[value] for value in tensor_args(node).values()], outs)[0]
