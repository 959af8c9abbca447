"""Drafters, each a torch module that is trained, imported and compiled: a literal table by type."""

from dspark_compiler.models.drafters.base import Draft, Drafter, Memory, RingSpec, Sampler, Target
from dspark_compiler.models.drafters.config import DrafterConfig, DrafterType
from dspark_compiler.models.drafters.dspark import DSparkDrafter
from dspark_compiler.models.drafters.eagle3 import Eagle3Drafter
from dspark_compiler.models.drafters.medusa import MedusaDrafter

__all__ = ["DRAFTERS", "Draft", "Drafter", "DrafterConfig", "Memory", "RingSpec", "Sampler", "Target"]

DRAFTERS: dict[DrafterType, type[Drafter]] = {
    "dspark": DSparkDrafter,
    "medusa": MedusaDrafter,
    "eagle3": Eagle3Drafter,
}
