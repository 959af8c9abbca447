"""Frozen dataclasses to and from JSON, strictly: no missing, unknown or mistyped field gets through."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from dspark_compiler.errors import ArtifactError

_T = TypeVar("_T")

_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", types.NoneType: "null"}


def to_json(value: object) -> Any:
    """Plain JSON data (dict, list, str, int, float, bool, None) of a tree of dataclasses, mappings and tuples."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[_T], data: object, where: str) -> _T:
    """Builds ``cls`` from JSON data; ``where`` begins the message of the error.

    Raises:
        ArtifactError: a field is missing, unknown or of another type, naming its path.
    """
    return typing.cast(_T, _dataclass(cls, data, where, ""))


def _fail(where: str, path: str, message: str) -> ArtifactError:
    return ArtifactError(f"{where}: {path.lstrip('.') or 'top level'}: {message}; edited or damaged, compile again")


def _dataclass(cls: type, data: object, where: str, path: str) -> object:
    if not isinstance(data, dict):
        raise _fail(where, path, "expected an object")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in names:
        if name not in data:
            raise _fail(where, f"{path}.{name}", "missing")
    for name in data:
        if name not in names:
            raise _fail(where, f"{path}.{name}", "unknown field")
    return cls(**{name: _decode(hints[name], data[name], where, f"{path}.{name}") for name in names})


def _decode(hint: Any, data: object, where: str, path: str) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, data, where, path)
    if origin in (Union, types.UnionType):
        if data is None and types.NoneType in args:
            return None
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return _decode(inner, data, where, path)
    if origin is Literal:
        if data not in args:
            raise _fail(where, path, f"{data!r} is not one of {', '.join(map(str, args))}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise _fail(where, path, "expected a list")
        return tuple(_decode(args[0], item, where, f"{path}[{i}]") for i, item in enumerate(data))
    if origin is Mapping:
        if not isinstance(data, dict):
            raise _fail(where, path, "expected an object")
        return {key: _decode(args[1], item, where, f"{path}.{key}") for key, item in data.items()}
    return _scalar(hint, data, where, path)


def _scalar(hint: Any, data: object, where: str, path: str) -> object:
    # Exact types, since bool is a subclass of int; JSON may write the number 1.0 as 1.
    if type(data) is not hint and not (hint is float and type(data) is int):
        raise _fail(where, path, f"expected {_NAMES[hint]}, got {data!r:.60}")
    return data
