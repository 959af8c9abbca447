"""How a cache of the program keeps keys and values."""

from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.lowering.layout import dtype_name
from dspark_compiler.schedules.attention_shape import CacheForm
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


def cache_form(tensors: dict[str, fx.Node]) -> CacheForm:
    """How the cache of an operator's tensors keeps its slots."""
    storage = storage_of(tensors["k_cache"], tensors.get("k_scale"))
    return CacheForm(storage, free="free" in tensors, slot_position="slot_position" in tensors)


def form_name(form: CacheForm) -> str:
    """As part of a kernel's name; nothing for a plain cache."""
    stored = type(form.storage).__name__.lower() if form.storage.scaled else ""
    parts = (stored, "free" if form.free else "", "position" if form.slot_position else "")
    return "".join(f"_{part}" for part in parts if part)
