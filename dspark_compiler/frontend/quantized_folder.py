"""Folders whose linears hold integers or small floats: compressed-tensors (weights alone) and AWQ.

Layouts, N outputs, K inputs, G groups: compressed-tensors packs codes plus 2^(bits-1) along K into int32
(``weight_packed`` [N, K*bits/32]), or has int8 or e4m3 ones as they are (``weight`` [N, K]), beside ``weight_scale``
[N, G] and ``weight_zero_point``, packed along N. AWQ packs codes [K, N/8], eight neighbours along N in the order
0 2 4 6 1 3 5 7 (``qweight``; ``qzeros`` [G, N/8] likewise, ``scales`` [G, N]).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dspark_compiler.errors import InputError, UnsupportedModelError
from dspark_compiler.frontend.checkpoint import read_json
from dspark_compiler.quantization.weight import QuantizedWeight
from dspark_compiler.quantization.weight_format import WeightFormat

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PACKED, _PLAIN = "pack-quantized", ("int-quantized", "float-quantized", "naive-quantized")
# Ends of names of what belongs to quantized weights, and nothing else.
_OWNED = (
    *(".qweight", ".qzeros", ".scales"),
    *(".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx"),
)
METHODS = ("compressed-tensors", "awq")


@dataclass(frozen=True)
class Scheme:
    """How the linears of a folder are quantized: ``format`` without offsets, whatever a weight's zero points make."""

    method: str
    format: WeightFormat

    @staticmethod
    def of(settings: Mapping[str, Any], where: Path) -> "Scheme":
        """The scheme that a config's ``quantization_config`` names.

        Raises:
            UnsupportedModelError: one that cannot be read, in one line.
        """
        method = settings.get("quant_method")
        if method == "awq":
            bits, group = settings.get("bits"), settings.get("group_size")
            if bits != 4 or settings.get("version", "gemm") != "gemm" or not isinstance(group, int) or group < 1:
                raise UnsupportedModelError(
                    f"{where}: AWQ of {bits} bits, version {settings.get('version')}; only gemm"
                )
            return Scheme("awq", WeightFormat("int4", group))
        groups = list((settings.get("config_groups") or {}).values())
        layout = settings.get("format")
        if len(groups) != 1 or layout not in (_PACKED, *_PLAIN):
            raise UnsupportedModelError(
                f"{where}: compressed-tensors of format {layout} in {len(groups)} groups; only one"
            )
        if groups[0].get("input_activations") or groups[0].get("output_activations"):
            raise UnsupportedModelError(f"{where}: activations are quantized, too; only weights can be")
        return Scheme("compressed-tensors", _compressed_format(groups[0].get("weights") or {}, where))


def _compressed_format(weights: Mapping[str, Any], where: Path) -> WeightFormat:
    kind, bits, strategy = weights.get("type"), weights.get("num_bits"), weights.get("strategy")
    codes = {("int", 8): "int8", ("int", 4): "int4", ("float", 8): "float8_e4m3"}.get((str(kind), int(bits or 0)))
    if codes is None or strategy not in ("channel", "group") or weights.get("actorder"):
        raise UnsupportedModelError(f"{where}: {bits}-bit {kind} weights by {strategy} cannot be read")
    return WeightFormat(codes, int(weights["group_size"]) if strategy == "group" else 0)  # type: ignore[arg-type]


class QuantizedTensors:
    """The tensors of such a folder, one weight at a time.

    Raises:
        InputError: a tensor that belongs to a weight is missing or misshapen.
    """

    def __init__(self, path: Path, scheme: Scheme) -> None:
        self._path, self._scheme = path, scheme
        shards = (
            sorted(set(read_json(path / _INDEX)["weight_map"].values())) if (path / _INDEX).is_file() else [_WEIGHTS]
        )
        self._places: dict[str, str] = {}
        for shard in shards:
            with safe_open(path / shard, framework="pt") as file:
                self._places.update(dict.fromkeys(file.keys(), shard))

    def weights(self) -> Iterator[tuple[str, QuantizedWeight]]:
        """Names of weights, as a model without quantization has them, and what they are kept as."""
        mark = ".qweight" if self._scheme.method == "awq" else ".weight_scale"
        for name in sorted(self._places):
            if name.endswith(mark):
                module = name.removesuffix(mark)
                yield f"{module}.weight", self._awq(module) if mark == ".qweight" else self._compressed(module)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor as a model without quantization has it."""
        state = {name: self._read(name) for name in self._places if not name.endswith(_OWNED)}
        return state | {name: weight.dequantized() for name, weight in self.weights()}

    def _read(self, name: str) -> Tensor:
        if name not in self._places:
            raise InputError(f"{self._path}: {name} is missing; fetch the model again")
        with safe_open(self._path / self._places[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def _awq(self, module: str) -> QuantizedWeight:
        codes = _unpacked(self._read(f"{module}.qweight"), 4, _AWQ_ORDER).T.contiguous()  # [N,K], 0 to 15
        zeros = _unpacked(self._read(f"{module}.qzeros"), 4, _AWQ_ORDER).T
        return self._weight(module, codes - 8, self._read(f"{module}.scales").T, zeros - 8)

    def _compressed(self, module: str) -> QuantizedWeight:
        form, scales = self._scheme.format, self._read(f"{module}.weight_scale")
        scales = scales[:, None] if scales.ndim == 1 else scales
        zero = f"{module}.weight_zero_point"
        if f"{module}.weight_packed" not in self._places:
            zeros = self._read(zero) if zero in self._places else None
            return self._weight(module, self._read(f"{module}.weight"), scales, zeros)
        half = 1 << (form.bits - 1)
        features, depth = (int(extent) for extent in self._read(f"{module}.weight_shape"))
        codes = _unpacked(self._read(f"{module}.weight_packed"), form.bits)[:features, :depth] - half
        zeros = None
        if zero in self._places:
            zeros = _unpacked(self._read(zero).T, form.bits).T[:features] - half
        return self._weight(module, codes, scales, zeros)

    def _weight(self, module: str, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> QuantizedWeight:
        """Codes [N,K], scales and zero points [N,G]: W = (code - zero) * scale."""
        form, scales = self._scheme.format, scales.float().contiguous()
        expected = (codes.shape[0], form.groups(codes.shape[1]))
        if form.group and codes.shape[1] % form.group:
            raise InputError(
                f"{self._path}: {module}: {codes.shape[1]} columns do not divide into groups of {form.group}"
            )
        if tuple(scales.shape) != expected:
            raise InputError(f"{self._path}: {module}: scales {tuple(scales.shape)}, {expected} wanted")
        offsets = None if zeros is None or not zeros.float().any() else -zeros.float() * scales
        kind = torch.float8_e4m3fn if form.codes == "float8_e4m3" else torch.int8
        return QuantizedWeight(replace(form, offsets=offsets is not None), codes.to(kind), scales, offsets)


def _unpacked(words: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Unsigned codes int16 [R, C*32/bits] of int32 [R, C]; a word's i-th is the ``order[i]``-th of its columns."""
    count = 32 // bits
    codes = torch.stack([(words >> (bits * i)) & ((1 << bits) - 1) for i in range(count)], dim=-1).to(torch.int16)
    if order is not None:
        codes = codes[..., [order.index(place) for place in range(count)]]
    return codes.flatten(1)
