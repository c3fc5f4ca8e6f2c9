"""Fold frozen batch norms into the convolutions below them, so that one operation replaces two, with the same result.

With frozen statistics a batch norm is a scale and a shift of each channel, which can be merged into the convolution's
weight and bias (Jacob et al. 2018, section 3.2):

    gamma (W x + b - mu) / sqrt(var + eps) + beta = (s W) x + (beta - (mu - b) s), with s = gamma / sqrt(var + eps)

If the convolution is trained, its folded weight is computed from the parameters of the convolution and the norm in
every pass, or once for all passes of a step (`FoldedWeights`), so that the gradients reach all of these parameters. If
it is frozen, the folded weight is computed once.
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
"""Name of the attribute that marks a convolution's output as already normalised; its value is the running mean of the
norm."""


class FoldedNorms(Interception):
    """A context in which convolutions also compute the frozen batch norms above them; any number of threads may enter
    it.

    A convolution and a norm are a pair if the norm, and nothing else, takes the convolution's output.
    """

    def __init__(self, forward: Callable[[], object]) -> None:
        """Find the pairs in `forward`: one pass of the network, in evaluation mode."""
        with torch.no_grad(), _Finder() as finder:
            forward()
        self._norms = {id(found.weight): found for found in finder.found()}
        self._constant: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._shared: dict[int, tuple[Tensor, ...]] = {}
        """Folded weights and biases of trained convolutions that several passes share, by the weight's id."""

    def __len__(self) -> int:
        """Return the number of folded norms."""
        return len(self._norms)

    @contextmanager
    def once(self, trained: Sequence[Tensor], team: ThreadTeam) -> "Iterator[FoldedWeights]":
        """Fold the trained convolutions once for all passes inside the context, in the precision in which this thread
        computes now.

        Args:
            trained: the parameters with respect to which the passes are differentiated.
            team: the threads that fold.
        """
        trained_ids = {id(parameter) for parameter in trained}
        weights = FoldedWeights([pair for key, pair in self._norms.items() if key in trained_ids], trained, team)
        self._shared = weights.by_weight
        try:
            yield weights
        finally:
            self._shared = {}

    def call(self, function: Function, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """Compute convolutions with their norms folded in, and skip those norms."""
        if function is CONVOLUTION:
            return self._convolve(*arguments, **options)
        norm = _Norm(*arguments, **options)
        # The mark distinguishes the output of a folded convolution from one that was computed before the context was
        # entered.
        if getattr(norm.input, MARK, None) is norm.running_mean is not None:
            if norm.training:
                raise RuntimeError("a norm that was folded into its convolution must not update its statistics")
            return norm.input
        return self.pass_on(function, *arguments, **options)

    def _convolve(
        self,
        input: Tensor,  # torch's own name, for calls by keyword
        weight: Tensor,
        bias: Tensor | None = None,
        *arguments: Any,  # noqa: ANN401  (stride, padding, dilation and groups, passed on)
        **options: Any,  # noqa: ANN401
    ) -> Tensor:
        found = self._norms.get(id(weight))
        # A trained norm above a frozen convolution is not folded: its gradient would need the gradient of the folded
        # weight, which costs far more than the norm does.
        if found is None or (_is_trained(found.norm.weight, found.norm.bias) and not _is_trained(weight)):
            return self.pass_on(CONVOLUTION, input, weight, bias, *arguments, **options)
        # A trained convolution is folded in every pass, or was folded for the whole step; a frozen one is folded once
        # per precision.
        if _is_trained(weight):
            folded = self._shared.get(id(weight)) or _fold(found)
        else:
            # One entry for each precision, because the same network may compute in several.
            dtype = _dtype(weight)
            key = (id(weight), dtype)
            if key not in self._constant:
                new, shift = _fold(found)
                self._constant[key] = (new.to(dtype), shift.to(dtype))
            folded = self._constant[key]
        output = self.pass_on(CONVOLUTION, input, *folded, *arguments, **options)
        setattr(output, MARK, found.norm.running_mean)
        return output


class FoldedWeights:
    """Weights of trained convolutions with their norms folded in, once for all passes of a step.

    The passes are differentiated with respect to `leaves`; `gradients` returns the gradients of the parameters.
    """

    def __init__(self, found: "Sequence[_Found]", trained: Sequence[Tensor], team: ThreadTeam) -> None:
        """Fold the pairs in `found`, a part in each thread of the team; only parameters in `trained` get gradients."""
        self._trained = trained
        self._team = team
        trained_ids = {id(parameter) for parameter in trained}
        dtype = _dtype(trained[0])  # here, because autocast is each thread's own
        parts = [found[first :: team.count] for first in range(team.count)]
        self._folds = list(team.map(lambda part: _Fold(part, trained_ids, dtype), parts))
        of_folds = {id(source) for fold in self._folds for source in fold.sources}
        # The other trained parameters are leaves themselves, in their own precision, and autocast casts them in each
        # pass.
        self._others = [parameter for parameter in trained if id(parameter) not in of_folds]
        self.by_weight = {key: pair for fold in self._folds for key, pair in fold.by_weight.items()}
        """Folded weight and bias, by the id of the convolution's weight."""
        self.leaves = [*self._others, *(leaf for fold in self._folds for leaf in fold.leaves)]
        """Tensors with respect to which the passes are differentiated: folded weights and biases, and the other
        parameters."""
        self._sums: list[Tensor] = []

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add the gradients of one pass, with respect to the leaves, to the sum over the earlier passes, in float32."""
        for own, more in zip(self._sums, gradients, strict=bool(self._sums)):
            own.add_(more)
        # A copy, because autograd may return one tensor as the gradient of several leaves, such as the terms of a sum.
        self._sums = self._sums or [gradient.to(torch.float32, copy=True) for gradient in gradients]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the trained parameters, in their order, from the sum over the passes."""
        # Chain rule: dL/dp = sum over leaves f of (sum over passes of dL/df) df/dp. The second factor is the same in
        # every pass, so it is applied once per step. Parameters that are leaves themselves already have their
        # gradients.
        rest = iter(self._sums)
        found = {id(other): next(rest) for other in self._others}
        work = [(fold, [next(rest) for _ in fold.leaves]) for fold in self._folds]
        back = self._team.map(lambda given: given[0].back(given[1]), work)
        for fold, gradients in zip(self._folds, back, strict=True):
            found |= {id(source): gradient for source, gradient in zip(fold.sources, gradients, strict=True)}
        return [found[id(parameter)] for parameter in self._trained]


class _Fold:
    """A part of the convolutions, folded by one thread."""

    def __init__(self, found: "Sequence[_Found]", trained_ids: set[int], dtype: torch.dtype) -> None:
        # Two graphs: parameters -> `_made` (here), and detached copies of `_made` -> loss (in each pass). `back` joins
        # them. The copies are cast to the precision of the passes once instead of in each pass.
        with torch.enable_grad():
            made = [_fold(pair) for pair in found]
        self._made = [one for both in made for one in both if one.requires_grad]
        pairs = [tuple(one.detach().to(dtype).requires_grad_(one.requires_grad) for one in both) for both in made]
        self.by_weight = {id(pair.weight): both for pair, both in zip(found, pairs, strict=True)}
        self.leaves = [one for both in pairs for one in both if one.requires_grad]
        given = [one for pair in found for one in (pair.weight, pair.bias, pair.norm.weight, pair.norm.bias)]
        self.sources = [one for one in given if one is not None and id(one) in trained_ids]

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
    """Weight of the convolution (c_out, c_in, k, k); referenced here, so that no other tensor gets its id."""
    bias: Tensor | None
    """Bias of the convolution (c_out,)."""
    norm: _Norm
    inverse: Tensor
    """1 / sqrt(running variance + epsilon) of the norm, (c_out,)."""


class _Finder(TorchFunctionMode):
    """Records which convolutions and norms a forward pass calls, and how often each convolution's output is used."""

    def __init__(self) -> None:
        super().__init__()
        self._convolved: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        """Output, weight and bias of each convolution, by the output's id."""
        self._uses: dict[int, int] = {}
        """Number of functions that take each output, by its id."""
        self._norms: dict[int, _Norm] = {}
        """Frozen norm that takes each output, by the output's id."""
        self._calls: dict[int, int] = {}
        """Number of convolutions that use each weight, by its id."""

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
            # Without this, the function that batch_norm itself calls would count as a second use of the output.
            with torch._C.DisableTorchFunction():
                output = function(*arguments, **options)
        else:
            output = function(*arguments, **options)
        # Only functions that return tensors use an output: reading its shape does not count.
        if any(isinstance(made, Tensor) for made in tree_leaves(output)):
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
        """Return the pairs: convolutions that are called once, with an output that only one frozen norm takes."""
        found = []
        for key, norm in self._norms.items():
            _, weight, bias = self._convolved[key]
            # A weight that is used in two convolutions would need two folded weights.
            if self._uses[key] == 1 and self._calls[id(weight)] == 1 and norm.running_var is not None:
                inverse = (norm.running_var + norm.eps).rsqrt()
                found.append(_Found(weight, bias, norm._replace(input=weight), inverse))
        return found


def _fold(found: _Found) -> tuple[Tensor, Tensor]:
    """Return the weight (c_out, c_in, k, k) and the bias (c_out,) of the convolution with the norm folded in."""
    weight, bias, norm, inverse = found
    assert norm.running_mean is not None
    # s = gamma / sqrt(var + eps); W' = s W; b' = beta - (mu - b) s
    scale = inverse if norm.weight is None else norm.weight * inverse
    centre = norm.running_mean if bias is None else norm.running_mean - bias
    shift = -centre * scale if norm.bias is None else torch.addcmul(norm.bias, centre, scale, value=-1.0)
    return weight * scale.view(-1, 1, 1, 1), shift


def _dtype(weight: Tensor) -> torch.dtype:
    """Return the precision in which a convolution with this weight computes in this thread."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _is_trained(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
