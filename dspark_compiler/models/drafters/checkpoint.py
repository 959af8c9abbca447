"""The folder of decode heads: config.json, model.safetensors in bfloat16, and calibration.json once calibrated.

config.json holds the fields of ``DrafterConfig``, ``target`` (whose heads they are), ``training`` (how they were made)
and ``format``. Embedding and head are the target's and not in it.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dspark_compiler import schema
from dspark_compiler.errors import InputError
from dspark_compiler.models.drafters import DRAFTERS
from dspark_compiler.models.drafters.base import Drafter
from dspark_compiler.models.drafters.config import DrafterConfig
from dspark_compiler.models.drafters.heads import Calibration, Heads, TargetIdentity
from dspark_compiler.models.drafters.tensors import AGAIN, fill, read_tensors
from dspark_compiler.models.drafters.validate import check_calibration, check_config, check_fits
from dspark_compiler.replace import clear_stale, make_partial, put_in_place

__all__ = ["build", "check_fits", "check_output", "is_heads", "read_heads", "write_calibration", "write_heads"]

FORMAT = "dspark-heads-1"

CONFIG, WEIGHTS, CALIBRATION = "config.json", "model.safetensors", "calibration.json"


def build(config: DrafterConfig) -> Drafter:
    """A drafter with random weights."""
    return DRAFTERS[config.drafter_type](config)


def check_output(folder: Path) -> None:
    """Refuses to write heads where something else would be lost.

    Raises:
        InputError: ``folder`` is a file, or holds something that is not heads.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name another folder")
    if folder.is_dir() and any(folder.iterdir()) and not is_heads(folder):
        raise InputError(f"{folder}: is a folder but holds no decode heads; name another one, or remove it")


def is_heads(folder: Path) -> bool:
    """Whether a folder is one of ours, of any format version."""
    try:
        data = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and str(data.get("format", "")).startswith("dspark-heads-")


def write_heads(folder: Path, heads: Heads) -> None:
    """Writes the folder: at any moment there is the previous one whole, or the new one whole.

    Raises:
        InputError: something is there already that is not heads.
        OSError: the disk refuses.
    """
    folder = folder.absolute()
    check_output(folder)
    clear_stale(folder)
    partial, lock = make_partial(folder)
    try:
        _write_json(partial / CONFIG, _config_json(heads))
        state = heads.drafter.state_dict()
        tensors = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in state.items()}
        save_file(tensors, partial / WEIGHTS, {"format": "pt"})
        if heads.calibration is not None:
            _write_json(partial / CALIBRATION, schema.to_json(heads.calibration))
        put_in_place(partial, folder)
    finally:
        os.close(lock)
        clear_stale(folder)


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Puts a calibration beside the weights it is for, all at once or not at all."""
    partial = folder / f".{CALIBRATION}.partial"
    _write_json(partial, schema.to_json(calibration))
    os.replace(partial, folder / CALIBRATION)


def read_heads(folder: Path) -> Heads:
    """The heads of a folder, weights as float32.

    Raises:
        InputError: no such folder, not heads, or damaged ones; names the file and what is wrong with it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that dspark heads train or import wrote")
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"{folder}: no {CONFIG}, so these are no decode heads; give a folder dspark heads wrote")
    config, target, training = _read_config(file)
    drafter = build(config)
    fill(drafter, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return Heads(drafter.eval(), target, _read_calibration(folder / CALIBRATION, config), training)


def _config_json(heads: Heads) -> dict[str, Any]:
    return {
        **heads.drafter.config.to_json(),
        "format": FORMAT,
        "target": schema.to_json(heads.target),
        "training": schema.to_json(heads.training),
    }


def _read_config(file: Path) -> tuple[DrafterConfig, TargetIdentity, dict[str, Any]]:
    data = _read_json(file)
    kind = data.pop("format", None)
    if kind != FORMAT:
        hint = "import the checkpoint with dspark heads import" if "architectures" in data else "upgrade dspark-compile"
        raise InputError(f"{file}: format {kind!r} where {FORMAT} is read; {hint}")
    target, training = data.pop("target", None), data.pop("training", None)
    try:
        config = schema.from_json(DrafterConfig, data)
        identity = schema.from_json(TargetIdentity, target, "target")
        if not isinstance(training, dict):
            raise schema.MisfitError("training: expected an object")
    except schema.MisfitError as error:
        raise InputError(f"{file}: {error}; edited or damaged, {AGAIN}") from None
    check_config(config, str(file))
    sizes = (identity.hidden_size, identity.vocab_size, identity.num_layers)
    if sizes != (config.hidden_size, config.vocab_size, config.num_target_layers):
        raise InputError(f"{file}: target: its sizes are not those of the drafter; edited or damaged, {AGAIN}")
    return config, identity, training


def _read_calibration(file: Path, config: DrafterConfig) -> Calibration | None:
    if not file.is_file():
        return None
    try:
        calibration = schema.from_json(Calibration, _read_json(file))
    except schema.MisfitError as error:
        raise InputError(f"{file}: {error}; remove the file, or calibrate the heads again") from None
    check_calibration(calibration, config, str(file))
    return calibration


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({error}); edited or cut short, {AGAIN}") from None
    if not isinstance(data, dict):
        raise InputError(f"{file}: holds no JSON object; {AGAIN}")
    return data


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
