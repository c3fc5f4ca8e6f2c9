"""Frozen batch norms folded into the convolutions below them: one operation instead of two, with the same result.

With frozen statistics a batch norm is a scale and a shift for each channel, which the convolution's weight and bias can
take over (Jacob et al. 2018, section 3.2). Where the convolution is trained, its folded weight is computed from its own
and the norm's parameters in every pass, so that gradients reach all of them; elsewhere it is computed once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from finetune.network.interception import BATCH_NORM, CONVOLUTION, Function, Interception

MARK = "_finetune_folded_norm"
"""Attribute of a convolution's output that has been through the norm already: the norm's running mean."""


class FoldedNorms(Interception):
    """Lets convolutions do the work of the frozen batch norms above them; a context, for any number of threads.

    A convolution and a norm belong together where the norm, and nothing else, takes the convolution's output.
    """

    def __init__(self, forward: Callable[[], object]) -> None:
        """Find out what belongs together in `forward`: one pass of the network, in evaluation mode."""
        with torch.no_grad(), _Finder() as finder:
            forward()
        self._norms = {id(found.weight): found for found in finder.found()}
        self._constant: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Return how many norms are folded."""
        return len(self._norms)

    def call(self, function: Function, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """Take over convolutions, and the norms that are folded into them."""
        if function is CONVOLUTION:
            return self._convolve(*arguments, **options)
        norm = _Norm(*arguments, **options)
        if getattr(norm.input, MARK, None) is norm.running_mean is not None:
            if norm.training:
                raise RuntimeError("a norm that was folded into its convolution is asked for new statistics")
            return norm.input
        return self.hand_on(function, *arguments, **options)

    def _convolve(
        self,
        input: Tensor,  # torch's own name, for calls by keyword
        weight: Tensor,
        bias: Tensor | None = None,
        *arguments: Any,  # noqa: ANN401  (stride, padding, dilation and groups, handed on)
        **options: Any,  # noqa: ANN401
    ) -> Tensor:
        found = self._norms.get(id(weight))
        # The gradient of a weight costs far more than a norm, so it is not computed for the norm's sake.
        if found is None or (_is_trained(found.norm.weight, found.norm.bias) and not _is_trained(weight)):
            return self.hand_on(CONVOLUTION, input, weight, bias, *arguments, **options)
        if _is_trained(weight):
            folded = _fold(weight, bias, found.norm)
        else:
            kind = input.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
            key = (id(weight), dtype)
            if key not in self._constant:
                new, shift = _fold(weight, bias, found.norm)
                self._constant[key] = (new.to(dtype), shift.to(dtype))
            folded = self._constant[key]
        output = self.hand_on(CONVOLUTION, input, *folded, *arguments, **options)
        setattr(output, MARK, found.norm.running_mean)
        return output


class _Norm(NamedTuple):
    """A call of `batch_norm`."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class _Found(NamedTuple):
    weight: Tensor
    """Of the convolution; held, so that no other tensor gets its id."""
    norm: _Norm


class _Finder(TorchFunctionMode):
    """Watches a forward pass, and so every call of a function of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self._convolved: dict[int, tuple[Tensor, Tensor]] = {}
        """Output and weight of each convolution, by the output's id."""
        self._uses: dict[int, int] = {}
        self._norms: dict[int, _Norm] = {}
        self._calls: dict[int, int] = {}
        """How often each weight convolves."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  (torch's protocol)
        options = options or {}
        if function is BATCH_NORM:
            norm = _Norm(*arguments, **options)
            if id(norm.input) in self._convolved and not norm.training and norm.running_mean is not None:
                self._norms[id(norm.input)] = norm
            with torch._C.DisableTorchFunction():  # or the function it calls would count as a second use
                output = function(*arguments, **options)
        else:
            output = function(*arguments, **options)
        if any(isinstance(made, Tensor) for made in tree_leaves(output)):  # shapes and the like are no use
            for given in tree_leaves((arguments, options)):
                if isinstance(given, Tensor) and id(given) in self._convolved:
                    self._uses[id(given)] = self._uses.get(id(given), 0) + 1
        if function is CONVOLUTION:
            weight = arguments[1] if len(arguments) > 1 else options["weight"]
            self._convolved[id(output)] = (output, weight)
            self._calls[id(weight)] = self._calls.get(id(weight), 0) + 1
        return output

    def found(self) -> list[_Found]:
        """Return the convolutions whose output one frozen norm, and nothing else, takes."""
        pairs = [(self._convolved[key][1], norm) for key, norm in self._norms.items() if self._uses[key] == 1]
        return [_Found(weight, norm._replace(input=weight)) for weight, norm in pairs if self._calls[id(weight)] == 1]


def _fold(weight: Tensor, bias: Tensor | None, norm: _Norm) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that does the norm's work, too."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = (norm.running_mean if bias is None else norm.running_mean - bias) * -scale
    return weight * scale.view(-1, 1, 1, 1), shift if norm.bias is None else shift + norm.bias


def _is_trained(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
