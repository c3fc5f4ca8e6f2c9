"""What was measured about the images, the network and the machine, before anything is decided."""

from typing import Literal

from finetune.preprocessing import Preprocessing
from finetune.recipe import Metric, Strategy
from finetune.value import Value

Precision = Literal["float32", "bfloat16", "float16"]


class StageProfile(Value):
    """One stage of the network, from the stem upwards."""

    name: str
    num_parameters: int
    forward_share: float
    """Share of the network's multiplications in a forward pass."""
    output_values: int | None
    """Numbers that one image's activation at the end of the stage has; None where the network can not be cut there."""


class TrainingSpeed(Value):
    """How fast this machine trains the network one way."""

    strategy: Strategy
    trainable_stages: int
    """How many of the last stages are trained (0: head or norms alone)."""
    precision: Precision
    """The faster of those that were timed."""
    images_per_second: float
    """Training steps on ready tensors; for `partial`, from activations kept at the frozen boundary."""
    prefix_images_per_second: float | None
    """The frozen part below the boundary, forward; None where there is none to keep."""


class MachineSpeed(Value):
    """What this machine does with this network at this image size."""

    device: str
    num_threads: int
    forward_precision: Precision
    forward_images_per_second: float
    reading_images_per_second: float
    """Decoding and augmenting, where it does not overlap with the network (CPU); else infinity is written as 1e9."""
    training: tuple[TrainingSpeed, ...]

    def fastest(self, strategy: Strategy, trainable_stages: int) -> TrainingSpeed:
        """Return the measured speed of a strategy; for `partial`, of the nearest number of stages that was timed."""
        measured = [speed for speed in self.training if speed.strategy == strategy]
        return min(measured, key=lambda speed: abs(speed.trainable_stages - trainable_stages))


class ProbeResult(Value):
    """A linear classifier on frozen features, judged on images that it did not see."""

    accuracy: float
    """Cross-validated top-1 accuracy."""
    accuracy_error: float
    """Its standard error."""
    balanced_accuracy: float
    log_loss: float
    strength: float
    """The inverse regularisation C that did best (standardised features, summed loss)."""
    answers: dict[str, float]
    """Balanced accuracy under each answer to unequal classes: none, class_weights, logit_adjustment."""


class Evidence(Value):
    """The measurements that the choice and the plan rest on."""

    model: str
    """The network that was measured."""
    weights: str
    """Where its weights came from."""
    num_images: int
    """Training images."""
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
    handedness: float
    """Share of pairs in which a linear classifier tells an image from its mirrored copy; 0.5: they look alike."""
    forward_images_per_second: float
    train_images_per_second: float
    """Training every layer."""
    stages: tuple[StageProfile, ...]
    speed: MachineSpeed
    seconds: float
    """What the measuring cost."""
    metric: Metric
    """The metric that chooses."""
    has_validation: bool
    """Whether the data came with a validation split."""
