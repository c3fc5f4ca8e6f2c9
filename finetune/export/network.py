"""Build the part of an exported graph from square images to probabilities: the network or networks of a model."""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from finetune.decide.preprocessing import Preprocessing
from finetune.network.head import recorded_features
from finetune.predict.links import Link
from finetune.predict.model import Ensemble, Predictor, TrainedModel
from finetune.predict.neighbours import Neighbours


class MemberProbabilities(nn.Module):
    """The probabilities and features of one trained network: normalisation, test-time flips, temperature and softmax or
    sigmoid."""

    def __init__(self, model: TrainedModel) -> None:
        """Copy the network of `model` to the CPU; the model itself stays unchanged."""
        super().__init__()
        self.network = copy.deepcopy(model.network).cpu().to(memory_format=torch.contiguous_format).float().eval()
        self._flips = model.plan.test_time_flips
        self._temperature = model.temperature
        self._link = model.link
        self._num_classes = len(model.class_names)
        # (pixels / 255 - mean) / std = (pixels - 255 mean) / (255 std), as in the eager path
        colours = model.plan.preprocessing
        self.mean = nn.Buffer(torch.tensor(colours.mean).view(1, -1, 1, 1) * 255.0)
        self.std = nn.Buffer(torch.tensor(colours.std).view(1, -1, 1, 1) * 255.0)

    def forward(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities (n, num_classes) and the features (n, width) of squares (n, channels, size,
        size) uint8."""
        inputs = (squares.to(torch.float32) - self.mean) / self.std
        with recorded_features(self.network, with_logits=True) as compute:
            found = compute(self.network, inputs)
        features, logits = found[:, : -self._num_classes], found[:, -self._num_classes :]
        if self._flips:
            both = [self._link.probabilities(each) for each in (logits, self.network(inputs.flip(-1)))]
            logits = logits_of_mean(both, self._link)
        return self._link.probabilities(logits / self._temperature), features


class SquareProbabilities(nn.Module):
    """The probabilities of a model, of one network or of several, from the squares of each distinct preprocessing."""

    def __init__(self, model: Predictor, neighbours: Neighbours | None = None) -> None:
        """Copy the networks of `model`.

        Args:
            model: the model.
            neighbours: training images from which the distance of each image is returned, too; None: no distances.
        """
        super().__init__()
        members = model.members if isinstance(model, Ensemble) else (model,)
        assert all(isinstance(member, TrainedModel) for member in members)
        self.members = nn.ModuleList(MemberProbabilities(member) for member in members)  # type: ignore[arg-type]
        self.preprocessings = distinct_preprocessings(model)
        self._uses = [self.preprocessings.index(_square_of(member.plan.preprocessing)) for member in members]
        self._temperature = model.temperature if isinstance(model, Ensemble) else None
        self._link = model.link
        # float16, as they are stored: half the size in the file
        self.neighbours: Tensor | None
        self.register_buffer("neighbours", None if neighbours is None else torch.from_numpy(neighbours.features).half())

    @cached_property
    def num_bytes(self) -> int:
        """Size of all weights, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    def forward(self, *squares: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the probabilities (n, num_classes) of the squares (n, channels, size, size) uint8 of each
        preprocessing, and the distance (n,) of each image from its nearest neighbour if there are any."""
        found = [member(squares[use]) for member, use in zip(self.members, self._uses, strict=True)]
        probabilities: Tensor = found[0][0]
        if self._temperature is not None:
            mean = logits_of_mean([part for part, _ in found], self._link)
            probabilities = self._link.probabilities(mean / self._temperature)
        if self.neighbours is None:
            return probabilities
        # 1 - max_i cos(f, t_i): the stored features t_i have a length of 1
        features = nn.functional.normalize(torch.cat([part for _, part in found], dim=1))
        return probabilities, (1.0 - (features @ self.neighbours.float().T).amax(dim=1)).clamp_min(0.0)


def logits_of_mean(parts: Sequence[Tensor], link: Link) -> Tensor:
    """Return logits of the mean of several probabilities, each (n, num_classes), as an ensemble predicts."""
    return link.logits(torch.stack(list(parts)).mean(dim=0))


def distinct_preprocessings(model: Predictor) -> tuple[Preprocessing, ...]:
    """Return the different ways in which the members of a model resize and crop an image, each once."""
    members = model.members if isinstance(model, Ensemble) else (model,)
    return tuple(dict.fromkeys(_square_of(member.plan.preprocessing) for member in members))


def _square_of(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing without its colours, which the network's own part of the graph normalises."""
    count = preprocessing.num_channels
    return preprocessing.changed(mean=(0.0,) * count, std=(1.0,) * count)
