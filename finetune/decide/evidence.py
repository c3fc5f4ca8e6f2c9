"""Define the evidence: the measurements of the images, the network and the machine on which every decision is based."""

from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, computed_field, model_validator

from finetune.decide.families import Family
from finetune.decide.preprocessing import Preprocessing
from finetune.errors import RecipeError
from finetune.recipe import METRIC_OF_SETS, Layout, Metric, Precision, Strategy
from finetune.value import FrozenModel
from finetune.work import Work


class StageProfile(FrozenModel):
    """One stage of the network, a block of layers, with its size and its cost."""

    name: str
    """Name of the stage."""
    num_parameters: int
    """Number of parameters in the stage."""
    forward_share: float
    """Fraction of the network's multiplications in a forward pass that the stage takes, 0 .. 1."""
    output_values: int | None
    """Number of values in one image's activation at the end of the stage; None where the network cannot be cut
    there."""


class ForwardSettings(FrozenModel):
    """Settings for reading images and sending them through a network that is not trained: the fastest ones of those
    timed."""

    precision: Precision
    """Number format of the forward pass: `float32`, `bfloat16` or `float16`."""
    layout: Layout
    """Memory layout of images and activations, in forward passes and in training steps: `channels_last` or
    `contiguous`."""
    batch_size: Annotated[int, Field(ge=1)]
    """Number of images in a batch of a forward pass."""
    parallel_parts: Annotated[int, Field(ge=1, alias="streams")]
    """Number of batches that are computed in parallel, each by its own thread team."""
    num_threads: Annotated[int, Field(ge=1)]
    """Number of threads in each thread team."""
    loader_workers: Annotated[int, Field(ge=0)]
    """Number of worker processes that read images ahead; 0: the main process reads them between the batches."""


class TrainingSpeed(FrozenModel):
    """How fast this machine trains the network under one strategy."""

    strategy: Strategy
    """Strategy that was timed."""
    trainable_stages: int
    """Number of last stages that were trained under `partial`; 0 under the other strategies."""
    precision: Precision
    """Number format of the training steps: the fastest of those timed."""
    parallel_parts: Annotated[int, Field(alias="streams")]
    """Number of parts of a batch that are computed in parallel."""
    images_per_second: float
    """Speed of training steps on images in memory (under `partial`, on cached activations), in images per second."""
    prefix_images_per_second: float | None
    """Speed of the forward pass through the frozen stages under `partial`, in images per second; None if their output
    cannot be cached."""
    gradient_error: float
    """Error of the gradients in this number format: 1 - their cosine with those in float32, on real images."""


class MachineSpeed(FrozenModel):
    """Speed of one process of this machine with this network, at this image size."""

    device: str
    """Name of the processor or accelerator."""
    device_kind: str = "cpu"
    """PyTorch's name of the kind of device, such as `cpu`, `cuda` or `mps`."""
    num_threads: int
    """Number of threads that one process uses."""
    num_processes: Annotated[int, Field(ge=1)] = 1
    """Number of processes that will share the training, each on a device of its own."""
    forward: ForwardSettings
    """Fastest settings of a forward pass."""
    forward_images_per_second: float
    """Speed of the forward pass with these settings on images in memory, in images per second."""
    forward_error: float
    """Error of the features in this number format, compared with float32, as a fraction of the features' variance over
    real images."""
    reading_images_per_second: float
    """Speed of reading and augmenting images, in images per second, as far as it adds to the network's time; 1e9 if
    reading and computing overlap fully."""
    micro_batch: int
    """Number of images that were computed at once in the timed training steps; larger batches are accumulated."""
    training: tuple[TrainingSpeed, ...]
    """Training speed of each strategy that was timed."""

    def fastest(self, strategy: Strategy, trainable_stages: int) -> TrainingSpeed:
        """Return the measured training speed of a strategy; for `partial`, the one with the nearest number of trained
        stages.

        Raises:
            RecipeError: the strategy was not timed.
        """
        measured = [speed for speed in self.training if speed.strategy == strategy]
        if not measured:
            raise RecipeError(f"speed.training has no entry for the strategy {strategy}; measure the evidence again")
        return min(measured, key=lambda speed: abs(speed.trainable_stages - trainable_stages))


class LearningCurve(FrozenModel):
    """Learning curve of a linear probe: its accuracy as a function of the number of training images."""

    num_images: tuple[int, ...]
    """Numbers of training images: a quarter, a half and all of the training images of a fold."""
    accuracy: tuple[float, ...]
    """Top-1 accuracy, or mean average precision of sets of labels, for each number of training images, on the same
    held-out images, 0 .. 1."""
    slope: float
    """Exponent b of the learning curve `errors ~ images ** -b`, from its first to its last point."""
    slope_error: float
    """Standard error of the slope, over images."""


class ProbeResult(FrozenModel):
    """Cross-validation of the linear probe, a linear classifier on frozen features."""

    accuracy: float
    """Cross-validated top-1 accuracy, or mean average precision of sets of labels, 0 .. 1."""
    accuracy_error: float
    """Standard error of `accuracy`, 0 .. 1."""
    balanced_accuracy: float
    """Cross-validated balanced accuracy, the mean of the classes' accuracies, 0 .. 1."""
    log_loss: float
    """Cross-validated log-loss, in nats."""
    inverse_regularization: Annotated[float, Field(alias="strength")]
    """Inverse regularization C with the lowest cross-validated log-loss, for standardised features and a loss summed
    over images."""
    answers: dict[str, float]
    """Cross-validated balanced accuracy without and with the correction for classes of unequal size (`none` and
    `logit_adjustment`), or mean average precision of sets of labels (`none` and `class_weights`), 0 .. 1."""
    curve: LearningCurve
    """Accuracy as a function of the number of training images."""


class GroupFinding(FrozenModel):
    """Accuracy of the linear probe on images like the training images, and on images of groups that it has not seen."""

    rule: str
    """Rule that gives the groups, as the key `groups` of the recipe."""
    description: str
    """Source of the groups, in words."""
    num_groups: int
    """Number of groups of the measured training images."""
    random_accuracy: float
    """Cross-validated top-1 accuracy if random images are held out, 0 .. 1."""
    grouped_accuracy: float
    """Cross-validated top-1 accuracy if whole groups are held out, in folds of the same sizes and classes, 0 .. 1."""
    error: float
    """Standard error of the difference of both accuracies, paired over images."""
    used: bool
    """Whether no split and no fold divides these groups; false: they were found, but are not certain."""


class Evidence(FrozenModel):
    """The measurements that the choice and the plan are based on."""

    model: str
    """Name of the network that was measured."""
    model_reason: str = ""
    """Reason why `auto` stands for this network; empty if the network was asked for."""
    weights: str
    """Source of the network's weights: a file, the local cache, the hub or an installed package."""
    takes_any_size: bool = False
    """Whether the network can be trained on smaller images than those that it predicts from."""
    source_classes: int = 0
    """Number of classes of the pretrained classifier; 0: the weights do not include one."""
    family: Family = "cnn"
    """Family of the network, which sets its learning rates."""
    highest_rate: float | None = None
    """Highest learning rate of all layers at which the loss was seen to fall, in a range test of a few seconds; None:
    the network's rates are calibrated, or no test was needed."""
    licence: str = ""
    """Licence of the pretrained weights, as timm states it; empty if it is not known."""
    num_images: int
    """Number of training images."""
    num_held: int
    """Number of training images in memory or on disk: all of them, or a sample if they are streamed."""
    num_classes: int
    """Number of classes."""
    images_per_class: float
    """Mean number of training images per class."""
    class_counts: dict[str, int]
    """Number of training images of each class, by its name."""
    imbalance: float
    """Number of images of the largest class divided by that of the smallest."""
    num_unreadable: int
    """Number of image files that could not be read and were left out."""
    native_shorter_side: int
    """Median of the stored images' shorter sides, in pixels."""
    preprocessing: Preprocessing
    """Preprocessing of images for the network, at the planned size."""
    image_size_reason: str
    """Reason for the planned image size, in one sentence."""
    domain_similarity: float
    """Similarity of the images to the pretraining images, from 0 (far) to 1 (near)."""
    similarity_parts: dict[str, float]
    """The measurements behind the domain similarity, by name."""
    similarity_calibrated: bool
    """Whether the scale of the domain similarity was fitted for this network."""
    probe: ProbeResult
    """Result of the linear probe on the network's frozen features."""
    groups: GroupFinding | None = None
    """Accuracy on unseen groups, if the images have groups or groups were found; None: no groups are known."""
    chirality: Annotated[float | None, Field(alias="handedness")]
    """Fraction of pairs in which a linear classifier distinguishes an image from its mirrored copy, 0 .. 1; 0.5: they
    look the same. None for the strategy `linear_probe`, which does not train on mirrored images."""
    stages: tuple[StageProfile, ...]
    """Stages of the network, from the stem to the last one."""
    speed: MachineSpeed
    """Speed of this machine with this network."""
    cache_bytes: int
    """Largest size of cached activations that the cache can hold, in bytes; 0 if images are streamed."""
    num_test: int = 0
    """Number of test images; they are counted, but not read."""
    seconds_before: float = 0.0
    """Wall time of the command before this measurement, in seconds: of imports, of listing the images, and of measuring
    other networks."""
    seconds: float
    """Wall time of the measurement, in seconds."""
    work: Work
    """Amount of computation in the measurement: images decoded and sent through the network."""
    metric: Metric
    """Metric by which models are compared: `top1`, `balanced_accuracy`, or, of sets of labels,
    `mean_average_precision`."""
    has_validation: bool
    """Whether the data has a validation split of its own."""

    @property
    def has_sets(self) -> bool:
        """Whether images have any number of labels."""
        return self.metric == METRIC_OF_SETS

    @property
    def chance(self) -> float:
        """Accuracy of guessing: that of one of K equally frequent classes, or the mean share of images with a label."""
        return self.images_per_class / self.num_images if self.has_sets else 1.0 / self.num_classes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def probe_accuracy(self) -> float:
        """Cross-validated accuracy of the linear probe, 0 .. 1: `probe.accuracy`."""
        return self.probe.accuracy

    @computed_field  # type: ignore[prop-decorator]
    @property
    def probe_accuracy_error(self) -> float:
        """Standard error of the linear probe's cross-validated top-1 accuracy: `probe.accuracy_error`."""
        return self.probe.accuracy_error

    @computed_field  # type: ignore[prop-decorator]
    @property
    def forward_images_per_second(self) -> float:
        """Speed of the forward pass on images in memory, in images per second: `speed.forward_images_per_second`."""
        return self.speed.forward_images_per_second

    @computed_field  # type: ignore[prop-decorator]
    @property
    def train_images_per_second(self) -> float:
        """Speed of training all layers, in images per second, from `speed.training`."""
        return self.speed.fastest("full", 0).images_per_second

    @model_validator(mode="wrap")
    @classmethod
    def _computed_keys_agree(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        """Accept computed keys in a file if they agree with the fields that they are computed from; raise a ValueError
        if not."""
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
