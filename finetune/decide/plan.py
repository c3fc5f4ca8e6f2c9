"""Define the plan: every number of a training, so that the plan can be read, edited, saved and run again."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune.decide.answers import AnswerRule
from finetune.decide.evidence import ForwardSettings
from finetune.decide.preprocessing import Preprocessing
from finetune.decide.workload import small_views
from finetune.recipe import (
    METRIC_OF_COSTS,
    METRIC_OF_SETS,
    BatchNormStatistics,
    Metric,
    Mixing,
    Optimizer,
    Precision,
    Schedule,
    Strategy,
    TableColumns,
)
from finetune.value import FrozenModel, is_none, is_unset

REFIT_RATE = 0.25
"""Ratio of the peak rates of a refit that continues from the evaluated weights to those of the training."""

CYCLE_SHARE = 0.4
"""Ratio of the number of steps of a further cycle to that of the training."""

CYCLE_RATE = 0.5
"""Ratio of the peak rates of a further cycle to those of the training."""

MOST_WEIGHT = 10.0
"""Largest weight of the images with a label of a set, and of those without: a rarer label would rest on few images."""

Rate = Annotated[float, Field(ge=0, le=10)]
"""A learning rate."""

Share = Annotated[float, Field(ge=0, lt=1)]
"""A fraction below 1."""


class StagePlan(FrozenModel):
    """One stage of the network, with its learning rate."""

    name: str
    """Name of the stage."""
    learning_rate: Rate
    """Peak learning rate of the stage (under `norm_tuning`, of its normalisation layers); 0: the stage is frozen."""


class AugmentationPlan(FrozenModel):
    """Augmentation of the training images."""

    horizontal_flip: bool
    """Whether half of the images are mirrored left to right."""
    vertical_flip: bool
    """Whether half of the images are mirrored top to bottom."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)]
    """Smallest fraction of the image's area that a random crop keeps; 1: the centre crop is used, as in prediction."""
    color_jitter: Annotated[float, Field(ge=0, le=1)]
    """Strength of random changes of brightness, contrast and saturation, 0 .. 1: each is multiplied by a factor between
    1 - strength and 1 + strength."""
    policy: Literal["none", "randaugment", "trivialaugment"]
    """Published augmentation policy that is applied after the other changes: `none`, `randaugment` or
    `trivialaugment`."""
    mixing: Mixing
    """Mixing of pairs of training images and of their labels: `none`, `mixup` or `cutmix`."""


class Plan(FrozenModel):
    """Every number that a training depends on. The same plan, with the same number of threads, gives the same model."""

    data: str
    """Training images, as in the recipe."""
    columns: TableColumns
    """Names of the columns of a table."""
    groups: str = "auto"
    """Rule for the groups that no split and no fold divides, as in the recipe; `none`: there are no groups. Plans of
    earlier versions, which do not have the key, respect a group column."""
    limit: Annotated[int, Field(ge=0)]
    """Number of training images to use; 0: all."""
    allow_rare: Annotated[bool, Field(exclude_if=is_unset)] = False
    """Whether classes may have too few images to be evaluated, as in the recipe; left out where they may not."""
    model: str
    """Name of the network."""
    weights: str
    """Weights that the training starts from: `pretrained`, `random`, or the path of a file."""
    preprocessing: Preprocessing
    """Preprocessing of images for the network."""
    strategy: Strategy
    """Strategy: how much of the network is trained."""
    stages: tuple[StagePlan, ...]
    """Stages of the network with their learning rates, from the stem to the last one."""
    head_learning_rate: Rate
    """Peak learning rate of the head."""
    probe_inverse_regularization: Annotated[float, Field(gt=0, alias="probe_strength")]
    """Inverse regularization C of the linear probe that the head starts from."""
    steps: Annotated[int, Field(ge=0)]
    """Number of optimizer steps; 0: the head is that of the linear probe."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Number of steps, from the first, in which the learning rates rise to their peaks."""
    small_steps: Annotated[int, Field(ge=0)] = 0
    """Number of steps, from the first, on smaller images (progressive resizing: Howard 2018; Tan & Le 2021)."""
    schedule: Schedule
    """Schedule of the learning rates after the warm-up."""
    batch_size: Annotated[int, Field(ge=1)]
    """Number of images in an optimizer step, over all processes."""
    accumulation: Annotated[int, Field(ge=1)]
    """Number of micro-batches into which each batch is divided to save memory (gradient accumulation); several
    processes share them."""
    optimizer: Optimizer = "adamw"
    """Optimizer: `adamw`, or `sgd` with a Nesterov momentum of 0.9."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """Weight decay of weight matrices, decoupled for AdamW and part of the gradient for SGD."""
    label_smoothing: Share
    """Probability that the target distributes over all classes (label smoothing)."""
    co_tuning: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the second loss, on the pretrained classifier (co-tuning, You et al. 2020); 0: there is no second
    loss."""
    clip_norm: Annotated[float, Field(gt=0)]
    """Largest norm of the gradient; longer gradients are scaled down to it."""
    average_decay: Share
    """Decay per step of the exponential moving average of the weights; 0: there is no average."""
    batch_norm_statistics: BatchNormStatistics
    """Running statistics of batch norms: `frozen` keeps them, `updated` updates them in each step, and `re_estimated`
    estimates them from the training images before the training and then freezes them."""
    imbalance: Literal["none", "class_weights", "logit_adjustment"]
    """Correction for classes of unequal size: `none`, `class_weights` or `logit_adjustment`."""
    augmentation: AugmentationPlan
    """Augmentation of the training images."""
    test_time_flips: bool
    """Whether a prediction is the mean over an image and its mirrored copy."""
    cached_views: Annotated[int, Field(ge=0)]
    """Number of augmented views of each image with cached activations at the frozen boundary; 0: none are cached."""
    precision: Precision
    """Number format of the training steps: `float32`, `bfloat16` or `float16`."""
    compiled: bool = False
    """Whether PyTorch compiles the network for the training steps (`torch.compile`); predictions are not compiled."""
    parallel_parts: Annotated[int, Field(ge=1, alias="streams")]
    """Number of parts of a batch that are computed in parallel on a CPU, each by its own thread team."""
    num_threads: Annotated[int, Field(ge=1)]
    """Number of threads in each thread team."""
    forward: ForwardSettings
    """Settings for reading images and sending them through the network when no gradient is needed."""
    keep: Literal["last", "best"]
    """Weights that a training ends with: those of its last step (`last`) or of its best evaluation (`best`)."""
    evaluations: Annotated[int, Field(ge=1)]
    """Number of evaluations on held-out images during a training; in a cross-validation, during the first fold."""
    patience: Annotated[int, Field(ge=0)]
    """Number of evaluations in a row without a gain after which a training stops; 0: it takes all its steps."""
    minimum_gain: Annotated[float, Field(ge=0)]
    """Smallest decrease of the held-out log-loss that early stopping counts as a gain, in nats."""
    time_budget: Annotated[float, Field(ge=0)]
    """Time limit of all trainings together, in seconds; 0: there is no limit. If steps take longer than expected, fewer
    steps are taken, spread over the whole schedule."""
    validation: Literal["given", "held_out", "cross_validation"]
    """Images to evaluate on: a split of the data (`given`), a held-out part of the training images (`held_out`), or
    each fold with the training that did not see it (`cross_validation`)."""
    folds: Annotated[int, Field(ge=2)]
    """Number of folds of a cross-validation."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Number of the only fold that is held out, 1 .. folds; the training without it is kept as an ensemble member. 0:
    each fold is held out once, and the final model is trained on all images."""
    refit: bool
    """Whether the final model comes from a last training on all images."""
    refit_steps: Annotated[int, Field(ge=0)]
    """Number of steps of the refit, which continues from the evaluated weights. After a cross-validation, which has
    several trainings, it starts from the beginning and takes `steps`."""
    metric: Metric
    """Metric by which models are compared: `top1`, `balanced_accuracy`, `mean_average_precision`, which says that
    images have any number of labels, or `mean_cost`."""
    answers: Annotated[AnswerRule | None, Field(exclude_if=is_none)] = None
    """Rule by which the answer for an image follows from the probabilities; left out: it is the most probable class, or
    every label that reaches its threshold."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of the splits."""
    training_seed: Annotated[int, Field(ge=0)]
    """Seed of the order of the images, the augmentation, dropout and new weights."""
    cycle: Annotated[int, Field(ge=0)]
    """Number of a further cycle of the schedule, which continues from the training's weights and gives another
    snapshot; 0: the training itself."""
    reasons: tuple[str, ...] = ()
    """Reasons for the numbers of the plan, one sentence each."""

    @property
    def evaluated_on(self) -> str:
        """Human-readable description of the images that the model is evaluated on."""
        if self.fold:
            return f"the part of the images that fold {self.fold} of {self.folds} holds out"
        source = {
            "given": "the validation split",
            "held_out": "held-out training images",
            "cross_validation": f"{self.folds}-fold cross-validation",
        }[self.validation]
        return f"{source}, before the refit" if self.refit or self.validation == "cross_validation" else source

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.steps and self.warmup_steps >= self.steps:
            raise ValueError(f"a warm-up of {self.warmup_steps} steps does not fit into {self.steps} steps")
        if self.small_steps >= max(self.steps, 1):
            raise ValueError(f"of {self.steps} steps the last must see full-size images; set small_steps to less")
        if self.small_steps and self.cached_views == 1:
            raise ValueError(
                "one cached view cannot be small and full-size; set small_steps to 0, or cached_views to 2"
            )
        if self.refit and self.steps and not self.refit_steps:
            raise ValueError("a refit needs at least one step; set refit_steps, or refit to false")
        if self.cycle and not self.steps:
            raise ValueError("a further cycle continues a training, but this plan has no steps; set cycle to 0")
        folds = self.folds if self.validation == "cross_validation" else 0
        if self.fold > folds:
            raise ValueError(
                f"there is no fold {self.fold}, because validation is {self.validation}, with {folds} folds; "
                f"set fold to 0"
            )
        if self.patience and self.validation == "cross_validation":
            raise ValueError(
                "stopping early needs images that are held out in one training, but these are cross-validated; give a "
                "validation split, or set patience to 0"
            )
        if self.strategy == "scratch" and (self.weights != "random" or self.steps == 0):
            raise ValueError("the strategy scratch needs weights: random and at least one step")
        if self.strategy == "partial" and not 1 <= self.trainable_stages < len(self.stages):
            raise ValueError(
                f"the strategy partial trains 1 to {len(self.stages) - 1} of the last stages; set the learning rates "
                f"of the lower ones to 0"
            )
        return self

    @model_validator(mode="after")
    def _suits_the_labels(self) -> Self:
        if self.has_sets and (self.imbalance == "logit_adjustment" or self.co_tuning):
            raise ValueError(
                "images have any number of labels (metric: mean_average_precision), so logit adjustment and co-tuning "
                "do not apply; set imbalance to class_weights or none, and co_tuning to 0"
            )
        return self

    @model_validator(mode="after")
    def _has_a_rule_for_its_metric(self) -> Self:
        if self.answers is not None and self.has_sets:
            raise ValueError("answers are for one label per image, but the metric is that of any number; leave it out")
        if self.answers is None and self.metric == METRIC_OF_COSTS:
            raise ValueError(f"metric: {METRIC_OF_COSTS} needs the costs of answers; set the metric to top1")
        return self

    @property
    def has_sets(self) -> bool:
        """Whether images have any number of labels, whose probabilities are sigmoids."""
        return self.metric == METRIC_OF_SETS

    @property
    def noise_seed(self) -> int:
        """Seed of the order of the images, the augmentation and dropout, different for each cycle."""
        return self.training_seed + self.cycle

    @property
    def small_views(self) -> int:
        """Number of cached views that are of the smaller size."""
        return small_views(self.cached_views, self.small_steps, self.steps)

    @property
    def trainable_stages(self) -> int:
        """Number of last stages with a learning rate above 0, counted from the last one."""
        count = 0
        for stage in reversed(self.stages):
            if stage.learning_rate == 0:
                break
            count += 1
        return count


def plan_of_refit(plan: Plan) -> Plan:
    """Return the plan of the last training, on all images: shorter and with lower rates if it continues the first
    training."""
    if not plan.steps or not plan.refit_steps or plan.validation == "cross_validation":
        return plan
    return shortened(plan, plan.refit_steps, REFIT_RATE).changed(small_steps=0)


def plan_of_cycle(plan: Plan) -> Plan:
    """Return the plan of a further cycle, shorter and with lower rates than the training; return any other plan
    unchanged.

    Cycles that all start from the first solution, at a low rate, give accurate and different snapshots (Huang et al.
    2017; Sadrtdinov et al. 2023 for the start after transfer).
    """
    if not plan.cycle or not plan.steps:
        return plan
    return shortened(plan, max(1, round(CYCLE_SHARE * plan.steps)), CYCLE_RATE).changed(small_steps=0)


def shortened(plan: Plan, steps: int, rate: float = 1.0) -> Plan:
    """Return a plan with fewer steps, and with a warm-up and an averaging horizon that are shorter in proportion.

    Args:
        plan: a plan with at least one step.
        steps: new number of steps, at least 1.
        rate: factor on all learning rates.
    """
    # The horizon of an average with decay d is 1 / (1 - d) steps: it shrinks by the factor by which 1 - d grows.
    longer = plan.steps / steps
    return plan.changed(
        steps=steps,
        warmup_steps=min(round(plan.warmup_steps / longer), steps - 1),
        small_steps=min(round(plan.small_steps / longer), steps - 1),
        head_learning_rate=plan.head_learning_rate * rate,
        stages=[stage.changed(learning_rate=stage.learning_rate * rate) for stage in plan.stages],
        average_decay=max(0.0, 1.0 - (1.0 - plan.average_decay) * longer),
    )
