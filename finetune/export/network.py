"""Build the part of an exported graph from square images to probabilities: the network or networks of a model."""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from finetune.decide.preprocessing import Preprocessing
from finetune.predict.links import Link
from finetune.predict.model import Ensemble, Predictor, TrainedModel


class MemberProbabilities(nn.Module):
    """The probabilities of one trained network: normalisation, test-time flips, temperature and softmax or sigmoid."""

    def __init__(self, model: TrainedModel) -> None:
        """Copy the network of `model` to the CPU; the model itself stays unchanged."""
        super().__init__()
        self.network = copy.deepcopy(model.network).cpu().to(memory_format=torch.contiguous_format).float().eval()
        self._flips = model.plan.test_time_flips
        self._temperature = model.temperature
        self._link = model.link
        # (pixels / 255 - mean) / std = (pixels - 255 mean) / (255 std), as in the eager path
        colours = model.plan.preprocessing
        self.mean = nn.Buffer(torch.tensor(colours.mean).view(1, 3, 1, 1) * 255.0)
        self.std = nn.Buffer(torch.tensor(colours.std).view(1, 3, 1, 1) * 255.0)

    def forward(self, squares: Tensor) -> Tensor:
        """Return the probabilities (n, num_classes) of squares (n, 3, size, size) uint8."""
        inputs = (squares.to(torch.float32) - self.mean) / self.std
        logits = self.network(inputs)
        if self._flips:
            both = [self._link.probabilities(each) for each in (logits, self.network(inputs.flip(-1)))]
            logits = logits_of_mean(both, self._link)
        return self._link.probabilities(logits / self._temperature)


class SquareProbabilities(nn.Module):
    """The probabilities of a model, of one network or of several, from the squares of each distinct preprocessing."""

    def __init__(self, model: Predictor) -> None:
        """Copy the networks of `model`."""
        super().__init__()
        members = model.members if isinstance(model, Ensemble) else (model,)
        assert all(isinstance(member, TrainedModel) for member in members)
        self.members = nn.ModuleList(MemberProbabilities(member) for member in members)  # type: ignore[arg-type]
        self.preprocessings = distinct_preprocessings(model)
        self._uses = [self.preprocessings.index(_square_of(member.plan.preprocessing)) for member in members]
        self._temperature = model.temperature if isinstance(model, Ensemble) else None
        self._link = model.link

    @cached_property
    def num_bytes(self) -> int:
        """Size of all weights, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    def forward(self, *squares: Tensor) -> Tensor:
        """Return the probabilities (n, num_classes) of the squares (n, 3, size, size) uint8 of each preprocessing."""
        parts = [member(squares[use]) for member, use in zip(self.members, self._uses, strict=True)]
        if self._temperature is None:
            only: Tensor = parts[0]
            return only
        return self._link.probabilities(logits_of_mean(parts, self._link) / self._temperature)


def logits_of_mean(parts: Sequence[Tensor], link: Link) -> Tensor:
    """Return logits of the mean of several probabilities, each (n, num_classes), as an ensemble predicts."""
    return link.logits(torch.stack(list(parts)).mean(dim=0))


def distinct_preprocessings(model: Predictor) -> tuple[Preprocessing, ...]:
    """Return the different ways in which the members of a model resize and crop an image, each once."""
    members = model.members if isinstance(model, Ensemble) else (model,)
    return tuple(dict.fromkeys(_square_of(member.plan.preprocessing) for member in members))


def _square_of(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing without its colours, which the network's own part of the graph normalises."""
    return preprocessing.changed(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
