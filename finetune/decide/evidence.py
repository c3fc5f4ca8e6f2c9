"""Hold what was measured about the images, the network and the machine: the basis of every decision."""

from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, computed_field, model_validator

from finetune.decide.preprocessing import Preprocessing
from finetune.errors import RecipeError
from finetune.recipe import Layout, Metric, Precision, Strategy
from finetune.value import FrozenModel
from finetune.work import Work


class StageProfile(FrozenModel):
    """One stage of the network: a block of layers."""

    name: str
    """Name of the stage."""
    num_parameters: int
    """Number of parameters in the stage."""
    forward_share: float
    """Share of the network's multiplications in a forward pass, 0 .. 1."""
    output_values: int | None
    """Number of values in one image's activation at the end of the stage; None where the network cannot be cut
    there."""


class ForwardSettings(FrozenModel):
    """How images are read and sent through a network that is not trained: the fastest settings of those timed."""

    precision: Precision
    """Arithmetic of the forward pass."""
    layout: Layout
    """Order of the values in memory, in forward passes and in training steps."""
    batch_size: Annotated[int, Field(ge=1)]
    """Number of images in a batch."""
    parallel_parts: Annotated[int, Field(ge=1, alias="streams")]
    """Number of batches that are computed in parallel, each by its own thread team."""
    num_threads: Annotated[int, Field(ge=1)]
    """Number of threads in each thread team."""
    loader_workers: Annotated[int, Field(ge=0)]
    """Number of processes that read ahead; 0: images are read between the batches."""


class TrainingSpeed(FrozenModel):
    """How fast this machine trains the network under one strategy."""

    strategy: Strategy
    """The strategy that was timed."""
    trainable_stages: int
    """How many of the last stages were trained under `partial`; 0 under the other strategies."""
    precision: Precision
    """Arithmetic of the training steps: the fastest of those timed."""
    parallel_parts: Annotated[int, Field(alias="streams")]
    """Number of parts of a batch that are computed in parallel."""
    images_per_second: float
    """Speed of training steps on images in memory; under `partial`, on cached activations."""
    prefix_images_per_second: float | None
    """Speed of the forward pass through the frozen stages under `partial`; None where their output cannot be cached."""
    gradient_error: float
    """1 - cosine between the gradients in this arithmetic and in float32, on real images."""


class MachineSpeed(FrozenModel):
    """How fast one process of this machine computes with this network at this image size."""

    device: str
    """Name of the processor or accelerator."""
    num_threads: int
    """Number of threads of one process."""
    num_processes: Annotated[int, Field(ge=1)] = 1
    """Number of processes that will share the training, each on a device of its own."""
    forward: ForwardSettings
    """The fastest settings of a forward pass."""
    forward_images_per_second: float
    """Speed of the forward pass with these settings, on images in memory."""
    forward_error: float
    """Share of the features' variance over real images that this arithmetic changes, compared with float32."""
    reading_images_per_second: float
    """Speed of reading and augmenting images, where that adds to the network's time; 1e9 where both overlap."""
    micro_batch: int
    """Number of images of a training step that were computed at once when it was timed; larger batches are
    accumulated."""
    training: tuple[TrainingSpeed, ...]
    """Speed of each strategy that was timed."""

    def fastest(self, strategy: Strategy, trainable_stages: int) -> TrainingSpeed:
        """Return the measured speed of a strategy; for `partial`, with the nearest number of stages that was timed."""
        measured = [speed for speed in self.training if speed.strategy == strategy]
        if not measured:
            raise RecipeError(f"speed.training has no entry for the strategy {strategy}; measure the evidence again")
        return min(measured, key=lambda speed: abs(speed.trainable_stages - trainable_stages))


class LearningCurve(FrozenModel):
    """How the errors of a linear probe fall with the number of images that it is trained on."""

    num_images: tuple[int, ...]
    """Numbers of training images: a quarter, a half, and all of a fold's."""
    accuracy: tuple[float, ...]
    """Top-1 accuracy for each number of training images, on the same held-out images, 0 .. 1."""
    slope: float
    """Exponent b in `errors ~ images ** -b`, from the first to the last point."""
    slope_error: float
    """Standard error of the slope, over images."""


class ProbeResult(FrozenModel):
    """The cross-validation of a linear classifier on frozen features."""

    accuracy: float
    """Cross-validated top-1 accuracy, 0 .. 1."""
    accuracy_error: float
    """Standard error of the accuracy."""
    balanced_accuracy: float
    """Cross-validated accuracy, averaged over the classes, 0 .. 1."""
    log_loss: float
    """Cross-validated log-loss, in nats."""
    inverse_regularization: Annotated[float, Field(alias="strength")]
    """Inverse regularization C with the lowest log-loss (standardised features, summed loss)."""
    answers: dict[str, float]
    """Balanced accuracy with each answer to unequal classes: none, class_weights, logit_adjustment."""
    curve: LearningCurve
    """Accuracy as a function of the number of training images."""


class Evidence(FrozenModel):
    """The measurements that the choice and the plan are based on."""

    model: str
    """Name of the network that was measured."""
    weights: str
    """Source of the network's weights."""
    takes_any_size: bool = False
    """Whether the network can be trained on smaller images than it predicts from."""
    source_classes: int = 0
    """Number of classes of the pretrained classifier; 0: the weights hold none."""
    num_images: int
    """Number of training images."""
    num_held: int
    """Number of training images in memory or on disk: all, or a sample where they are streamed."""
    num_classes: int
    """Number of classes."""
    images_per_class: float
    """Mean number of training images per class."""
    class_counts: dict[str, int]
    """Number of training images of each class, by its name."""
    imbalance: float
    """Number of images of the largest class over that of the smallest."""
    num_unreadable: int
    """Number of files that could not be read."""
    native_shorter_side: int
    """Median of the stored images' shorter sides, in pixels."""
    preprocessing: Preprocessing
    """How images are prepared for the network, at the planned size."""
    image_size_reason: str
    """Why images have the planned size."""
    domain_similarity: float
    """Similarity of the images to the pretraining images, from 0 (far) to 1 (near)."""
    similarity_parts: dict[str, float]
    """The measurements behind the domain similarity, by name."""
    similarity_calibrated: bool
    """Whether the scale of the similarity was fitted for this network."""
    probe: ProbeResult
    """Cross-validation of a linear probe."""
    chirality: Annotated[float | None, Field(alias="handedness")]
    """Share of pairs in which a linear classifier tells an image from its mirrored copy; 0.5: they look the same. None
    where nothing is to be trained on augmented images."""
    stages: tuple[StageProfile, ...]
    """The stages of the network, from the stem to the last one."""
    speed: MachineSpeed
    """Speed of this machine with the network."""
    cache_bytes: int
    """Most bytes of cached activations that this disk can hold; 0 where images are streamed."""
    seconds: float
    """Wall time of the measurement, in seconds."""
    work: Work
    """Images decoded and sent through the network during the measurement."""
    metric: Metric
    """The metric by which models are compared."""
    has_validation: bool
    """Whether the data came with a validation split."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def probe_accuracy(self) -> float:
        """Cross-validated top-1 accuracy of the linear probe, 0 .. 1: `probe.accuracy`."""
        return self.probe.accuracy

    @computed_field  # type: ignore[prop-decorator]
    @property
    def probe_accuracy_error(self) -> float:
        """Standard error of that accuracy: `probe.accuracy_error`."""
        return self.probe.accuracy_error

    @computed_field  # type: ignore[prop-decorator]
    @property
    def forward_images_per_second(self) -> float:
        """Speed of the forward pass, on images in memory: `speed.forward_images_per_second`."""
        return self.speed.forward_images_per_second

    @computed_field  # type: ignore[prop-decorator]
    @property
    def train_images_per_second(self) -> float:
        """Speed of training all layers, from `speed.training`."""
        return self.speed.fastest("full", 0).images_per_second

    @model_validator(mode="wrap")
    @classmethod
    def _computed_keys_agree(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        """Accept the computed keys of a file, as long as they agree with the fields that they are computed from."""
        if not isinstance(content, dict):
            return handler(content)
        value = handler({key: given for key, given in content.items() if key not in cls.model_computed_fields})
        for key in cls.model_computed_fields:
            if key in content and content[key] != getattr(value, key):
                raise ValueError(
                    f"{key} is {content[key]}, but probe and speed say {getattr(value, key)}, from which it is "
                    f"computed; change it there, and leave {key} out"
                )
        return value
