"""Frozen dataclasses to and from JSON, strictly: no missing, unknown or mistyped field gets through."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

_T = TypeVar("_T")


class MisfitError(ValueError):
    """A field that is missing, unknown or of another type; names its path."""


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


def from_json(cls: type[_T], data: object, path: str = "") -> _T:
    """Builds ``cls`` from JSON data; ``path``, of the data in a larger whole, begins that in the error.

    Raises:
        MisfitError: a field is missing, unknown or of another type.
    """
    return typing.cast(_T, _dataclass(cls, data, path))


def _fail(path: str, message: str) -> MisfitError:
    return MisfitError(f"{path.lstrip('.') or 'top level'}: {message}")


def _dataclass(cls: type, data: object, path: str) -> object:
    if not isinstance(data, dict):
        raise _fail(path, "expected an object")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in names:
        if name not in data:
            raise _fail(f"{path}.{name}", "missing")
    for name in data:
        if name not in names:
            raise _fail(f"{path}.{name}", "unknown field")
    return cls(**{name: _decode(hints[name], data[name], f"{path}.{name}") for name in names})


def _decode(hint: Any, data: object, path: str) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, data, path)
    if origin in (Union, types.UnionType):
        if data is None and types.NoneType in args:
            return None
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return _decode(inner, data, path)
    if origin is Literal:
        if data not in args:
            raise _fail(path, f"{data!r} is not one of {', '.join(map(str, args))}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise _fail(path, "expected a list")
        return tuple(_decode(args[0], item, f"{path}[{i}]") for i, item in enumerate(data))
    if origin is Mapping:
        if not isinstance(data, dict):
            raise _fail(path, "expected an object")
        return {key: _decode(args[1], item, f"{path}.{key}") for key, item in data.items()}
    return _scalar(hint, data, path)


def _scalar(hint: Any, data: object, path: str) -> object:
    if hint is Any:
        return data
    # Exact types, since bool is a subclass of int; JSON may write the number 1.0 as 1.
    if type(data) is not hint and not (hint is float and type(data) is int):
        raise _fail(path, f"expected {_NAMES[hint]}, got {data!r:.60}")
    return data
