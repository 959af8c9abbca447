"""The type a cache of the program keeps keys or values in."""

from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.lowering.layout import dtype_name
from dspark_compiler.schedules.cache_storage import STORAGES, Storage


def storage_of(cache: fx.Node, scale: fx.Node | None) -> Storage:
    """The type a cache keeps keys or values in; ``scale`` is the node of its scales, if it has any.

    Raises:
        LoweringError: a type no kernel reads, or scales where there should be none, or none where there should be.
    """
    dtype = cache.meta["val"].dtype
    storage = STORAGES.get(dtype_name(dtype))
    if storage is None:
        raise LoweringError(f"the cache {cache.name} is stored as {dtype}, not one of {', '.join(STORAGES)}")
    if storage.scaled != (scale is not None):
        raise LoweringError(f"the cache {cache.name}: a quantized cache, and no other, has scales")
    return storage
