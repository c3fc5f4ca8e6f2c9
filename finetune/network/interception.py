"""Calls of PyTorch's functions, taken over for a while."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class Interception(TorchFunctionMode, ABC):
    """A context in which every call of a function of PyTorch goes through `call`; each thread enters it for itself."""

    @abstractmethod
    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return what `function(*arguments, **options)` is to return."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  (torch's protocol)
        """Do as torch's protocol asks."""
        return self.call(func, args, kwargs or {})
