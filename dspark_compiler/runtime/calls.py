"""An entry point as a call, and what it can be given besides numbers of the host."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray


class Columns(NamedTuple):
    """An input [B,N] that is the first N columns of a tensor [B,M]."""

    tensor: Any


class Call(Protocol):
    """One entry point with its argument list.

    Attributes:
        width: tokens a sequence that it takes or makes.
        inputs: the tensors it takes its inputs from, by name; they hold what the last call was given.
    """

    width: int
    inputs: dict[str, Any]

    def prepare(self, **inputs: Any) -> None:
        """Gives the numbers of the next run ahead of it; then that is given nothing but tensors.

        They are on the device then before the calls run that make those tensors, and nothing comes between.
        """

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Runs with these inputs; returns the output tensors by name, which the next call may overwrite.

        An input is what another call returned, as a whole or as ``Columns``, and then stays on the device; or numbers,
        which are broadcast to the input's shape. Numbers, and arrays that cannot be written, need not be sent again
        when the next run is given the same.
        """

    def again(self) -> None:
        """Runs once more with what the last run was given, for those who want to know how long that takes."""


@dataclass(frozen=True)
class Fetched:
    """Tensors on their way to the host; ``arrays`` waits for them."""

    arrays: Callable[[], tuple[NDArray[Any], ...]]
