"""How fast models of real shapes decode on a GPU, with random weights made there: no checkpoint has to be moved.

    python benchmarks/cuda_shapes.py build qwen3-8b OUT      # where the compiler is; needs no GPU and no weights
    python benchmarks/cuda_shapes.py run OUT --json FILE     # on the GPU machine

What is measured runs interleaved in one process: decoding and prefill of the artifact through the runtime's own loop,
the single entry points as they are replayed, and a device copy, whose rate is the roofline of everything that streams
weights. ``--eager`` adds transformers on the same shapes.
"""

import argparse
import json
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import click

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "qwen3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
_COMMON = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
_ROPE = {"rope_theta": 1000000.0, "rope_type": "default"}


def shape_config(name: str) -> Any:
    """The transformers config of these shapes."""
    from transformers import Qwen3Config

    return Qwen3Config(max_position_embeddings=40960, rope_parameters=_ROPE, **(_COMMON | SHAPES[name]))


def hollow_model(config: Any) -> Any:
    """The model with matrices of one zero, seen as large: it can be traced, and takes no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                hollow = torch.zeros(()).expand(parameter.shape)
                module._parameters[name] = torch.nn.Parameter(hollow, requires_grad=False)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def build(options: argparse.Namespace) -> None:
    """Writes an artifact without its weights: library, manifest, an empty file for params."""
    from dspark_compiler.artifact import ArtifactWriter, ModelInfo, ParamInfo
    from dspark_compiler.backends import create_backend
    from dspark_compiler.config import NGRAM, CompileConfig
    from dspark_compiler.frontend.capture import capture
    from dspark_compiler.lowering.layout import plan_layouts
    from dspark_compiler.lowering.manifest import describe
    from dspark_compiler.lowering.relax import lower
    from dspark_compiler.passes.base import run_passes
    from dspark_compiler.passes.pipeline import default_pipeline
    from dspark_compiler.schedules.database import Records

    began = time.perf_counter()
    compile_config = CompileConfig(
        target="cuda",
        arch=options.arch,
        max_seq_len=options.max_seq_len,
        prefill_widths=tuple(int(width) for width in options.prefill.split(",")),
        verify_width=16,
        heads=NGRAM,  # for verifies of 8 and of 16
    )
    config = shape_config(options.shape)
    if options.layers:
        config.num_hidden_layers = options.layers
        config.layer_types = config.layer_types[: options.layers]
    program = capture(hollow_model(config), compile_config)
    for name, tensor in program.params.items():
        if tensor.stride()[-1:] == (0,):
            program.params[name] = tensor.to("meta") if tensor.ndim > 1 else tensor.contiguous()
    program, _ = run_passes(default_pipeline(compile_config), program)
    backend = create_backend("cuda", options.arch)
    plan = plan_layouts(program, backend.layouts("bfloat16"), "bfloat16")
    records = Records.standard(backend.spec.arch)
    lowered = lower(program, plan, records)
    click.echo(f"lowered after {time.perf_counter() - began:.0f} s")
    scheduled = backend.schedule(lowered, records)
    click.echo(f"scheduled after {time.perf_counter() - began:.0f} s")
    with ArtifactWriter(options.artifact) as writer, tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "model.so"
        backend.build(scheduled, library)
        for path in (library, *backend.runtime_libraries()):
            writer.add_file(path, f"lib/{path.name}")
        writer.add_bytes("params/00001.safetensors", b"")
        info = ModelInfo(
            name=options.shape,
            architecture="Qwen3ForCausalLM",
            model_type="qwen3",
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            max_positions=config.max_position_embeddings,
            bos_token_id=None,
            eos_token_ids=(),
        )
        manifest = describe(program, plan, info, backend.spec, compile_config)
        params = {n: ParamInfo("params/00001.safetensors", p.shape, p.dtype) for n, p in plan.params.items()}
        writer._params.update(params)
        writer.finish(manifest)
    click.echo(f"{options.artifact}: {options.shape}, {time.perf_counter() - began:.0f} s")


def random_device(artifact: Any) -> Any:
    """The GPU, with random weights of the artifact's shapes."""
    import torch

    from dspark_compiler.runtime.cuda import CudaRuntime
    from dspark_compiler.runtime.cuda_device import CudaDevice
    from dspark_compiler.runtime.library import import_tvm_ffi, load_cudart

    class RandomDevice(CudaDevice):
        def tensors(self, artifact: Any) -> dict[str, Any]:
            states = self.slab(artifact.manifest.states)
            self._slabs.append(states)
            self.cuda.zero(states.address, states.size, self.stream)
            weights = {}
            for name, info in artifact.manifest.params.items():
                value = torch.randn(info.shape, device="cuda", dtype=torch.float32)
                if name.endswith("inv_freq"):
                    half = value.numel()
                    value = 1.0 / (_ROPE["rope_theta"] ** (torch.arange(half, device="cuda").float() / half))
                elif value.ndim == 1:
                    value = 1 + 0.1 * value
                else:
                    value = value * 0.02
                weights[name] = import_tvm_ffi().from_dlpack(value.to(getattr(torch, info.dtype)).contiguous())
            torch.cuda.synchronize()
            return weights | states.tensors

    torch.cuda.init()
    torch.zeros(1, device="cuda")
    return RandomDevice(CudaRuntime(load_cudart(artifact)))


def bytes_per_token(manifest: Any, slots: int) -> int:
    """Weights a decode step reads, an embedding that is not the head left out, and ``slots`` keys and values."""
    sizes = {"bfloat16": 2, "float16": 2, "float32": 4}
    weights = sum(math.prod(info.shape) * sizes[info.dtype] for info in manifest.params.values())
    model = manifest.model
    tied = (_COMMON | SHAPES[model.name])["tie_word_embeddings"]
    embedding = 0 if tied else model.vocab_size * model.hidden_size * 2
    cache = model.num_layers * 2 * _COMMON["num_key_value_heads"] * _COMMON["head_dim"] * 2 * slots
    return int(weights - embedding + cache)


def copy_rate(gigabytes: int = 2) -> float:
    """Bytes a second of a device copy, read and written together."""
    import torch

    source = torch.empty(gigabytes << 29, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), 10)
    return 2 * source.numel() / seconds


def timed(call: Callable[[], Any], times: int) -> float:
    """Median seconds between events around one call, after two that warm up."""
    import torch

    call(), call()
    spans = []
    for _ in range(times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        spans.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(spans)


def run(options: argparse.Namespace) -> None:
    """Measures, prints a table, and writes JSON."""
    import numpy as np
    import torch

    from dspark_compiler.artifact import Artifact
    from dspark_compiler.runtime.executor import Executor
    from dspark_compiler.runtime.library import load_functions
    from dspark_compiler.runtime.sampling import SamplingParams
    from dspark_compiler.runtime.sequence import SequenceState
    from dspark_compiler.runtime.strategy import Autoregressive
    from dspark_compiler.runtime.strategy import run as run_loop

    artifact = Artifact.open(options.artifact, verify=False)
    load_functions(artifact, None)
    began = time.perf_counter()
    device = random_device(artifact)
    executor = Executor(artifact, device=device)
    loaded = time.perf_counter() - began
    strategy = Autoregressive(executor)
    rng = np.random.default_rng(0)
    vocab = artifact.manifest.model.vocab_size

    def generate(length: int, new: int) -> tuple[float, float]:
        prompt = rng.integers(0, vocab, length).tolist()
        params = SamplingParams(max_new_tokens=new, ignore_eos=True)
        sequence = SequenceState(0, prompt, params, room=new, eos_ids=frozenset(), tokenizer=None)
        start = time.perf_counter()
        stamps = [time.perf_counter() - start for _ in run_loop(executor, strategy, [sequence])]
        return stamps[0], (stamps[-1] - stamps[0]) / (len(stamps) - 1)

    generate(options.prompt, 8)
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        rate = copy_rate()
        first, step = generate(options.prompt, options.new)
        rounds.append({"copy_bytes_per_s": rate, "ttft_s": first, "tpot_s": step})
    stream = torch.cuda.ExternalStream(device.stream)

    def replay(name: str, **inputs: Any) -> float:
        call = named[name]
        call(**inputs)
        call(**inputs)
        graph = next(iter(call._graphs.values())).handle
        with torch.cuda.stream(stream):
            return timed(lambda: device.cuda.launch(graph, device.stream), 20)

    named = {f"prefill_{call.width}": call for call in executor._prefill}
    named["decode"] = executor._decode
    named |= {f"verify_{width}": call for width, call in executor._verify.items()}
    length = options.prompt
    entries = {}
    for name, call in named.items():
        kind = name.split("_")[0]
        rest = {} if kind == "verify" else {"sequence": 0, "count": call.width}
        at = 0 if kind == "prefill" else length
        positions = at + np.arange(call.width)[None]
        entries[name] = replay(name, input_ids=7, positions=positions, length=at, **rest)
    read = bytes_per_token(artifact.manifest, length + options.new // 2)
    rate = statistics.median(r["copy_bytes_per_s"] for r in rounds)
    limit = read / rate
    tpot = statistics.median(r["tpot_s"] for r in rounds)
    found = {
        "model": artifact.manifest.model.name,
        "layers": artifact.manifest.model.num_layers,
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "dspark-compile": _version("dspark-compile"), "driver": _driver()},
        "prompt": length,
        "new": options.new,
        "load_s": loaded,
        "obstacle": device.obstacle,
        "bytes_per_token": read,
        "copy_bytes_per_s": rate,
        "limit_ms": limit * 1e3,
        "tpot_ms": tpot * 1e3,
        "ttft_ms": statistics.median(r["ttft_s"] for r in rounds) * 1e3,
        "roofline_fraction": limit / tpot,
        "entries_ms": {name: seconds * 1e3 for name, seconds in entries.items()},
        "rounds": rounds,
        "memory_bytes": torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0],
    }
    click.echo(json.dumps({key: value for key, value in found.items() if key != "rounds"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("build")
    make.add_argument("shape", choices=SHAPES)
    make.add_argument("artifact", type=Path)
    make.add_argument("--arch", default="sm_90a")
    make.add_argument("--layers", type=int)
    make.add_argument("--max-seq-len", type=int, default=1024)
    make.add_argument("--prefill", default="512")
    make.set_defaults(run=build)
    measure = commands.add_parser("run")
    measure.add_argument("artifact", type=Path)
    measure.add_argument("--prompt", type=int, default=512)
    measure.add_argument("--new", type=int, default=128)
    measure.add_argument("--rounds", type=int, default=3)
    measure.add_argument("--json", type=Path)
    measure.set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
