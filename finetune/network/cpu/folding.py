"""Frozen batch norms folded into the convolutions below them: one operation instead of two, with the same result.

With frozen statistics a batch norm is a scale and a shift for each channel, which the convolution's weight and bias can
take over (Jacob et al. 2018, section 3.2). Where the convolution is trained, its folded weight is computed from its own
and the norm's parameters in every pass, or once for the passes of a step (`FoldedWeights`), so that gradients reach all
of them; elsewhere it is computed once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from finetune.network.cpu.interception import BATCH_NORM, CONVOLUTION, Function, Interception
from finetune.network.cpu.threads import ThreadTeam

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
        self._shared: dict[int, tuple[Tensor, ...]] = {}
        """Folded weights and biases of trained convolutions that several passes share, by the weight's id."""

    def __len__(self) -> int:
        """Return how many norms are folded."""
        return len(self._norms)

    @contextmanager
    def once(self, trained: Sequence[Tensor], streams: ThreadTeam) -> "Iterator[FoldedWeights]":
        """Fold what is trained, once for all passes inside, in the precision that this thread computes in now.

        Args:
            trained: the parameters that the passes are to be differentiated by.
            streams: which do the work.
        """
        members = {id(parameter) for parameter in trained}
        weights = FoldedWeights([pair for key, pair in self._norms.items() if key in members], trained, streams)
        self._shared = weights.by_weight
        try:
            yield weights
        finally:
            self._shared = {}

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
            folded = self._shared.get(id(weight)) or _fold(found)
        else:
            dtype = _dtype(weight)
            key = (id(weight), dtype)
            if key not in self._constant:
                new, shift = _fold(found)
                self._constant[key] = (new.to(dtype), shift.to(dtype))
            folded = self._constant[key]
        output = self.hand_on(CONVOLUTION, input, *folded, *arguments, **options)
        setattr(output, MARK, found.norm.running_mean)
        return output


class FoldedWeights:
    """Weights of trained convolutions with their norms folded in, once for the passes of a step: the tensors that these
    are to be differentiated by, and the way from there to the parameters."""

    def __init__(self, found: "Sequence[_Found]", trained: Sequence[Tensor], streams: ThreadTeam) -> None:
        """Fold what was `found`, of whose parameters those that are `trained` count; each stream does a part."""
        self._trained = trained
        self._streams = streams
        members = {id(parameter) for parameter in trained}
        dtype = _dtype(trained[0])  # of this thread's context
        parts = [found[first :: streams.count] for first in range(streams.count)]
        self._folds = list(streams.map(lambda part: _Fold(part, members, dtype), parts))
        of_folds = {id(source) for fold in self._folds for source in fold.sources}
        self._others = [parameter for parameter in trained if id(parameter) not in of_folds]
        self.by_weight = {key: pair for fold in self._folds for key, pair in fold.by_weight.items()}
        """Folded weight and bias, by the id of the convolution's weight."""
        self.leaves = [*self._others, *(leaf for fold in self._folds for leaf in fold.leaves)]
        """What the passes are to be differentiated by."""
        self._sums: list[Tensor] = []

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add the gradients of a pass by the leaves to those of the passes before it, in float32."""
        for own, more in zip(self._sums, gradients, strict=bool(self._sums)):
            own.add_(more)
        # A copy: the gradients of leaves that are added to each other are one tensor.
        self._sums = self._sums or [gradient.to(torch.float32, copy=True) for gradient in gradients]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the trained parameters, in their order, from those that were added."""
        rest = iter(self._sums)
        found = {id(other): next(rest) for other in self._others}
        work = [(fold, [next(rest) for _ in fold.leaves]) for fold in self._folds]
        back = self._streams.map(lambda given: given[0].back(given[1]), work)
        for fold, gradients in zip(self._folds, back, strict=True):
            found |= {id(source): gradient for source, gradient in zip(fold.sources, gradients, strict=True)}
        return [found[id(parameter)] for parameter in self._trained]


class _Fold:
    """Some convolutions, folded by one thread."""

    def __init__(self, found: "Sequence[_Found]", members: set[int], dtype: torch.dtype) -> None:
        with torch.enable_grad():
            made = [_fold(pair) for pair in found]
        self._made = [one for both in made for one in both if one.requires_grad]
        pairs = [tuple(one.detach().to(dtype).requires_grad_(one.requires_grad) for one in both) for both in made]
        self.by_weight = {id(pair.weight): both for pair, both in zip(found, pairs, strict=True)}
        self.leaves = [one for both in pairs for one in both if one.requires_grad]
        given = [one for pair in found for one in (pair.weight, pair.bias, pair.norm.weight, pair.norm.bias)]
        self.sources = [one for one in given if one is not None and id(one) in members]

    def back(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the gradients of the sources from those of the leaves."""
        return torch.autograd.grad(self._made, self.sources, gradients) if self.sources else ()


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
    bias: Tensor | None
    norm: _Norm
    inverse: Tensor
    """Of the running deviation."""


class _Finder(TorchFunctionMode):
    """Watches a forward pass, and so every call of a function of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self._convolved: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        """Output, weight and bias of each convolution, by the output's id."""
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
            bias = arguments[2] if len(arguments) > 2 else options.get("bias")
            self._convolved[id(output)] = (output, weight, bias)
            self._calls[id(weight)] = self._calls.get(id(weight), 0) + 1
        return output

    def found(self) -> list[_Found]:
        """Return the convolutions whose output one frozen norm, and nothing else, takes."""
        found = []
        for key, norm in self._norms.items():
            _, weight, bias = self._convolved[key]
            if self._uses[key] == 1 and self._calls[id(weight)] == 1 and norm.running_var is not None:
                inverse = (norm.running_var + norm.eps).rsqrt()
                found.append(_Found(weight, bias, norm._replace(input=weight), inverse))
        return found


def _fold(found: _Found) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that does the norm's work, too."""
    weight, bias, norm, inverse = found
    assert norm.running_mean is not None
    scale = inverse if norm.weight is None else norm.weight * inverse
    centre = norm.running_mean if bias is None else norm.running_mean - bias
    shift = -centre * scale if norm.bias is None else torch.addcmul(norm.bias, centre, scale, value=-1.0)
    return weight * scale.view(-1, 1, 1, 1), shift


def _dtype(weight: Tensor) -> torch.dtype:
    """Return what a convolution computes in."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _is_trained(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
