"""What was measured about the images, the network and the machine, before anything is decided."""

from typing import Annotated

from pydantic import Field

from finetune.decide.preprocessing import Preprocessing
from finetune.recipe import Layout, Metric, Precision, Strategy
from finetune.value import FrozenModel
from finetune.work import Work


class StageProfile(FrozenModel):
    """One stage of the network, from the stem upwards."""

    name: str
    num_parameters: int
    forward_share: float
    """Share of the network's multiplications in a forward pass."""
    output_values: int | None
    """Numbers that one image's activation at the end of the stage has; None where the network can not be cut there."""


class ForwardSettings(FrozenModel):
    """How images are read and sent through a network that is not trained; the fastest of what was timed."""

    precision: Precision
    layout: Layout
    """Order of the numbers in memory; of training, too."""
    batch_size: Annotated[int, Field(ge=1)]
    parallel_parts: Annotated[int, Field(ge=1, alias="streams")]
    """Batches computed in parallel, each by its own team of threads."""
    num_threads: Annotated[int, Field(ge=1)]
    """Threads of each."""
    loader_workers: Annotated[int, Field(ge=0)]
    """Processes that read ahead; 0: images are read between the batches."""


class TrainingSpeed(FrozenModel):
    """How fast this machine trains the network one way."""

    strategy: Strategy
    trainable_stages: int
    """How many of the last stages are trained (0: head or norms alone)."""
    precision: Precision
    """The faster of those that were timed."""
    parallel_parts: Annotated[int, Field(alias="streams")]
    """Parts of the batch that are computed side by side."""
    images_per_second: float
    """Training steps on ready tensors; for `partial`, from activations kept at the frozen boundary."""
    prefix_images_per_second: float | None
    """The frozen part below the boundary, forward; None where there is none to keep."""
    gradient_error: float
    """1 - cosine of the gradients in this arithmetic and in float32, on real images."""


class MachineSpeed(FrozenModel):
    """What this machine does with this network at this image size: one process of it."""

    device: str
    num_threads: int
    num_processes: Annotated[int, Field(ge=1)] = 1
    """Processes that will share the training, each on a device of its own."""
    forward: ForwardSettings
    forward_images_per_second: float
    """On ready tensors."""
    forward_error: float
    """Share of the features' variance over real images that the arithmetic changes, against float32."""
    reading_images_per_second: float
    """What reading and augmenting images adds to the network's time; 1e9 where it overlaps."""
    micro_batch: int
    """Most images of a training step that are worked on at once, as they were timed; larger batches are accumulated."""
    training: tuple[TrainingSpeed, ...]

    def fastest(self, strategy: Strategy, trainable_stages: int) -> TrainingSpeed:
        """Return the measured speed of a strategy; for `partial`, of the nearest number of stages that was timed."""
        measured = [speed for speed in self.training if speed.strategy == strategy]
        return min(measured, key=lambda speed: abs(speed.trainable_stages - trainable_stages))


class LearningCurve(FrozenModel):
    """How a linear probe's errors fall with the number of images that it learns from."""

    num_images: tuple[int, ...]
    """That it learned from: a quarter, half, and all of a fold's training images."""
    accuracy: tuple[float, ...]
    """Top-1 of each, on the same held-out images."""
    slope: float
    """b in `errors ~ images ** -b`, from the first to the last point."""
    slope_error: float
    """Its standard error, over images."""


class ProbeResult(FrozenModel):
    """A linear classifier on frozen features, judged on images that it did not see."""

    accuracy: float
    """Cross-validated top-1 accuracy."""
    accuracy_error: float
    """Its standard error."""
    balanced_accuracy: float
    log_loss: float
    inverse_regularization: Annotated[float, Field(alias="strength")]
    """The inverse regularisation C that did best (standardised features, summed loss)."""
    answers: dict[str, float]
    """Balanced accuracy under each answer to unequal classes: none, class_weights, logit_adjustment."""
    curve: LearningCurve


class Evidence(FrozenModel):
    """The measurements that the choice and the plan rest on."""

    model: str
    """The network that was measured."""
    weights: str
    """Where its weights came from."""
    takes_any_size: bool = False
    """Whether the network can be trained on smaller images than it predicts from."""
    source_classes: int = 0
    """Of the classifier that the network was pretrained with; 0: its weights have none."""
    num_images: int
    """Training images."""
    num_held: int
    """Those of them that are at hand: all, or a sample where they are streamed."""
    num_classes: int
    images_per_class: float
    """Mean over the classes."""
    class_counts: dict[str, int]
    imbalance: float
    """Images of the largest class over those of the smallest."""
    num_unreadable: int
    native_shorter_side: int
    """Median of the stored images' shorter sides, in pixels."""
    preprocessing: Preprocessing
    """How images were prepared for the network, at the planned size."""
    image_size_reason: str
    domain_similarity: float
    """0: far from the pretraining images; 1: near."""
    similarity_parts: dict[str, float]
    similarity_calibrated: bool
    """Whether the scale was fitted for this network."""
    probe_accuracy: float
    probe_accuracy_error: float
    probe: ProbeResult
    chirality: Annotated[float | None, Field(alias="handedness")]
    """Share of pairs in which a linear classifier tells an image from its mirrored copy; 0.5: they look alike. None
    where nothing is to be trained on varied images."""
    forward_images_per_second: float
    train_images_per_second: float
    """Training every layer."""
    stages: tuple[StageProfile, ...]
    speed: MachineSpeed
    cache_bytes: int
    """Most bytes that activations kept at a frozen boundary may take on this disk; 0 where images are streamed."""
    seconds: float
    """What the measuring cost."""
    work: Work
    """And in images."""
    metric: Metric
    """The metric that chooses."""
    has_validation: bool
    """Whether the data came with a validation split."""
