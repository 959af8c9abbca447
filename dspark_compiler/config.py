"""What a compile is asked for: one frozen object, each field an option of ``dspark-compile``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dspark_compiler.errors import InputError

Target = Literal["cpu", "cuda", "rocm", "vulkan", "onnxruntime"]
Emit = Literal["artifact", "onnx"]
DType = Literal["float32", "float16", "bfloat16"]
KVDType = Literal["float32", "float16", "bfloat16", "int8", "float8_e4m3"]
Quantization = Literal["int8", "int4-g128", "int4-g128-awq", "fp8", "keep"]
HeadsQuantization = Literal["int8", "int4-g128", "fp8"]

TARGETS: tuple[Target, ...] = ("cpu", "cuda", "rocm", "vulkan", "onnxruntime")
EMITS: tuple[Emit, ...] = ("artifact", "onnx")
DTYPES: tuple[DType, ...] = ("float32", "float16", "bfloat16")
KV_DTYPES: tuple[KVDType, ...] = ("float32", "float16", "bfloat16", "int8", "float8_e4m3")
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4-g128", "int4-g128-awq", "fp8", "keep")
HEADS_QUANTIZATIONS: tuple[HeadsQuantization, ...] = ("int8", "int4-g128", "fp8")

# What is taken where nothing is asked for, on the CPU and on GPUs; targets that take what the CPU does.
_CPU_DTYPE: DType = "float32"
_GPU_DTYPE: DType = "bfloat16"
_CPU_WIDTHS, _GPU_WIDTHS = (16, 128), (32, 512)
_LIKE_CPU: tuple[Target, ...] = ("cpu", "onnxruntime")
# Types the weights can have, and keys and values besides the type that attention computes with.
_DTYPES_OF: dict[Target, tuple[DType, ...]] = {"cuda": ("float16", "bfloat16"), "onnxruntime": ("float32", "float16")}
_QUANTIZED_KV: tuple[KVDType, ...] = ("int8", "float8_e4m3")
_KV_QUANTIZED_ON: tuple[Target, ...] = ("cpu", "cuda", "rocm", "vulkan")

# What a target has no kernels or operators for yet.
_WITHOUT: dict[Target, tuple[str, ...]] = {"onnxruntime": ("--arch",)}
# Targets whose schedules can be measured.
_TUNED: tuple[Target, ...] = ("cpu", "cuda", "vulkan")

# What --heads takes in place of a folder: drafts are looked up in the text so far.
NGRAM = Path("ngram")


@dataclass(frozen=True)
class CompileConfig:
    """Options of one compile; lengths in tokens.

    What is None depends on the target or the model; the driver settles it.

    Raises:
        InputError: a value out of range, naming the option.
    """

    target: Target = "cpu"
    arch: str | None = None
    output: Path | None = None
    dtype: DType | None = None
    kv_dtype: KVDType | None = None
    quantize: Quantization | None = None
    calibration: Path | None = None
    max_seq_len: int | None = None
    max_batch: int = 1
    prefill_widths: tuple[int, ...] | None = None
    verify_width: int = 8
    kv_budget: int | None = None
    kv_policy: str | None = None
    kv_weights: Path | None = None
    max_quality_loss: float | None = None
    heads: Path | None = None
    quantize_heads: HeadsQuantization | None = None
    tune_trials: int = 0
    dump_ir: Path | None = None
    check: bool = True
    emit: Emit = "artifact"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"--target {self.target}: not one of {', '.join(TARGETS)}")
        if self.emit not in EMITS:
            raise InputError(f"--emit {self.emit}: not one of {', '.join(EMITS)}")
        if self.emit == "onnx" and self.target != "onnxruntime":
            raise InputError(
                f"--emit onnx: ONNX models are what --target onnxruntime is made of, not --target {self.target}; "
                "leave one of the two out"
            )
        self._check_target()
        for option, value in (
            ("--max-seq-len", self.max_seq_len),
            ("--max-batch", self.max_batch),
            ("--verify-width", self.verify_width),
            ("--kv-budget", self.kv_budget),
        ):
            if value is not None and value < 1:
                raise InputError(f"{option} {value}: must be at least 1")
        if self.tune_trials < 0:
            raise InputError(f"--tune-trials {self.tune_trials}: must be 0 or more")
        if self.heads is not None and self.verify_width < 2:
            raise InputError(f"--verify-width {self.verify_width}: with --heads at least 2, a draft beside its anchor")
        self._check_quantization()
        self._check_pruning()
        if not self.chunk_widths or min(self.chunk_widths) < 1:
            raise InputError(f"prefill widths {self.chunk_widths}: at least one, each 1 or more")

    @property
    def weight_dtype(self) -> DType:
        """Type of the weights: as asked for, or the target's usual one."""
        return self.dtype or (_CPU_DTYPE if self.target in _LIKE_CPU else _GPU_DTYPE)

    @property
    def cache_dtype(self) -> KVDType:
        """Type of stored keys and values: as asked for, or what the target computes with."""
        return self.kv_dtype or self._computes_in

    @property
    def kv_dtypes(self) -> tuple[KVDType, ...]:
        """Types that keys and values can be stored in."""
        return (self._computes_in, *(_QUANTIZED_KV if self.target in _KV_QUANTIZED_ON else ()))

    @property
    def chunk_widths(self) -> tuple[int, ...]:
        """Chunks a prompt is read in: as asked for, or the target's usual ones."""
        if self.prefill_widths is not None:
            return self.prefill_widths
        like_cpu = self.target in _LIKE_CPU and self._computes_in == "float32"
        return _CPU_WIDTHS if like_cpu else _GPU_WIDTHS

    @property
    def verify_widths(self) -> tuple[int, ...]:
        """Tokens a verify can take, ascending; with heads there is a narrow one for short blocks."""
        if self.heads is None or self.verify_width < 4:
            return (self.verify_width,)
        return (self.verify_width // 2, self.verify_width)

    @property
    def _computes_in(self) -> DType:
        """Type of what attention reads and writes; ONNX Runtime's GPU takes 16 bits, where the processor takes 32."""
        return "float32" if self.target == "cpu" else self.weight_dtype

    def _check_target(self) -> None:
        for option, name, known in (
            ("--dtype", self.dtype, _DTYPES_OF.get(self.target, DTYPES)),
            ("--kv-dtype", self.kv_dtype, self.kv_dtypes),
        ):
            if name is not None and name not in known:
                raise InputError(f"{option} {name}: with --target {self.target} not one of {', '.join(known)}")
        if self.tune_trials and self.target not in _TUNED:
            raise InputError(f"--tune-trials {self.tune_trials}: nothing is measured for --target {self.target} yet")
        for option, given in (
            ("--heads", self.heads),
            ("--kv-budget", self.kv_budget),
            ("--max-quality-loss", self.max_quality_loss),
            ("--quantize", self.quantize),
            ("--quantize-heads", self.quantize_heads),
            ("--arch", self.arch),
        ):
            if given is not None and option in _WITHOUT.get(self.target, ()):
                raise InputError(f"{option} {given}: not with --target {self.target} yet; leave it out")

    def _check_quantization(self) -> None:
        if self.quantize is not None and self.quantize not in QUANTIZATIONS:
            raise InputError(f"--quantize {self.quantize}: not one of {', '.join(QUANTIZATIONS)}")
        if self.calibration is not None and self.quantize != "int4-g128-awq":
            raise InputError(f"--calibration {self.calibration}: read with --quantize int4-g128-awq only")
        if self.quantize_heads is not None and self.quantize_heads not in HEADS_QUANTIZATIONS:
            raise InputError(f"--quantize-heads {self.quantize_heads}: not one of {', '.join(HEADS_QUANTIZATIONS)}")
        if self.quantize_heads is not None and self.heads in (None, NGRAM):
            raise InputError(f"--quantize-heads {self.quantize_heads}: needs --heads with a folder of weights")

        for option, kind in (("--quantize", self.quantize), ("--quantize-heads", self.quantize_heads)):
            if self.target == "onnxruntime" and kind == "fp8":
                raise InputError(f"{option} fp8: ONNX has products with integer codes only; take int8 or int4-g128")

    def _check_pruning(self) -> None:
        gated = self.max_quality_loss is not None
        if self.kv_policy is not None and self.kv_budget is None and not gated:
            raise InputError(
                f"--kv-policy {self.kv_policy}: evicts nothing without --kv-budget N (or --max-quality-loss X, which "
                "finds one); give one"
            )
        if self.kv_policy is not None and "," in self.kv_policy and not gated:
            raise InputError(
                f"--kv-policy {self.kv_policy}: several are for --max-quality-loss to choose from; give one"
            )
        if self.max_quality_loss is not None and not self.max_quality_loss >= 0:
            raise InputError(f"--max-quality-loss {self.max_quality_loss:g}: must be 0 or more")
        if self.kv_weights is not None and self.kv_policy is None:
            raise InputError(f"--kv-weights {self.kv_weights}: for which --kv-policy?")
