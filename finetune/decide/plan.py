"""The plan: every number of a training resolved, so that it can be read, edited, saved and run again."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune.decide.evidence import ForwardSettings
from finetune.decide.preprocessing import Preprocessing
from finetune.decide.workload import small_views
from finetune.recipe import BatchNormStatistics, Metric, Mixing, Optimizer, Precision, Schedule, Strategy, TableColumns
from finetune.value import FrozenModel

REFIT_RATE = 0.25
"""Peak rates of a refit that goes on from the weights that were judged, over those of the training."""

CYCLE_SHARE = 0.4
"""Steps of a further cycle over those of the training."""

CYCLE_RATE = 0.5
"""Peak rates of a further cycle over those of the training."""

Rate = Annotated[float, Field(ge=0, le=10)]
Share = Annotated[float, Field(ge=0, lt=1)]


class StagePlan(FrozenModel):
    """One stage of the network and how fast it learns."""

    name: str
    learning_rate: Rate
    """Peak learning rate; 0: frozen. Under `norm_tuning` it is the rate of the stage's norms."""


class AugmentationPlan(FrozenModel):
    """How training images are varied."""

    horizontal_flip: bool
    vertical_flip: bool
    smallest_crop: Annotated[float, Field(gt=0, le=1)]
    """Smallest share of the image's area that a random crop keeps; 1: the centre, as in prediction."""
    color_jitter: Annotated[float, Field(ge=0, le=1)]
    policy: Literal["none", "randaugment", "trivialaugment"]
    mixing: Mixing
    """Whether images are mixed with others of their batch, and so are their labels."""


class Plan(FrozenModel):
    """Everything that a training needs to know. The same plan, seed and thread count make the same model."""

    data: str
    columns: TableColumns
    limit: Annotated[int, Field(ge=0)]
    """Training images to use; 0: all."""
    model: str
    weights: str
    """`pretrained`, `random`, or a file."""
    preprocessing: Preprocessing
    strategy: Strategy
    stages: tuple[StagePlan, ...]
    """From the stem upwards."""
    head_learning_rate: Rate
    probe_inverse_regularization: Annotated[float, Field(gt=0, alias="probe_strength")]
    """Inverse regularisation C of the linear probe that the head starts from."""
    steps: Annotated[int, Field(ge=0)]
    """Optimizer steps; 0: the head stays the linear probe's."""
    warmup_steps: Annotated[int, Field(ge=0)]
    small_steps: Annotated[int, Field(ge=0)] = 0
    """First steps, which see smaller images (progressive resizing: Howard 2018; Tan & Le 2021)."""
    schedule: Schedule
    """How the rates go on after the warm-up."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images a step, over all processes."""
    accumulation: Annotated[int, Field(ge=1)]
    """Parts of a batch that are worked off one after another, for less memory; several processes share them."""
    optimizer: Optimizer = "adamw"
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """Of the matrices: decoupled for AdamW, part of the gradient for SGD."""
    label_smoothing: Share
    co_tuning: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the pretrained classifier's own loss (You et al. 2020); 0: it is left behind."""
    clip_norm: Annotated[float, Field(gt=0)]
    average_decay: Share
    """Decay of the weights' exponential moving average, per step; 0: none."""
    batch_norm_statistics: BatchNormStatistics
    """`re_estimated`: the training images', from one pass before everything else; they do not move after it."""
    imbalance: Literal["none", "class_weights", "logit_adjustment"]
    augmentation: AugmentationPlan
    test_time_flips: bool
    """Whether predictions are the mean of an image's and its mirrored copy's."""
    cached_views: Annotated[int, Field(ge=0)]
    """Augmented views of each image whose activations at the frozen boundary are kept; 0: nothing is kept."""
    precision: Precision
    """Arithmetic of the training steps."""
    parallel_parts: Annotated[int, Field(ge=1, alias="streams")]
    """Parts of a batch that are computed side by side on a CPU."""
    num_threads: Annotated[int, Field(ge=1)]
    """Threads of each."""
    forward: ForwardSettings
    """How images are read and sent through the network where no gradient is needed."""
    keep: Literal["last", "best"]
    evaluations: Annotated[int, Field(ge=1)]
    """How often the held-out images are looked at during a training; of folds, those of the first."""
    patience: Annotated[int, Field(ge=0)]
    """Evaluations without a gain after which a training stops; 0: it takes all its steps."""
    minimum_gain: Annotated[float, Field(ge=0)]
    """Least fall of the held-out log-loss that is one."""
    time_budget: Annotated[float, Field(ge=0)]
    """Seconds that all trainings may take; where the steps take longer than expected, fewer are taken, along the whole
    schedule. 0: as long as they take."""
    validation: Literal["given", "held_out", "cross_validation"]
    folds: Annotated[int, Field(ge=2)]
    fold: Annotated[int, Field(ge=0)] = 0
    """0: each part of the images is held out in turn, and what ships is trained on all of them. Else (1 .. folds) that
    part alone is held out, and the training without it ships: a member of an average of folds."""
    refit: bool
    """Whether a last training, on all images, makes the model that ships."""
    refit_steps: Annotated[int, Field(ge=0)]
    """Of the refit, which goes on from the weights that were judged. After a cross-validation, which judged several, it
    starts anew and takes `steps`."""
    metric: Metric
    seed: Annotated[int, Field(ge=0)]
    """Of the splits."""
    training_seed: Annotated[int, Field(ge=0)]
    """Of the order of images, the augmentation, dropout and new weights."""
    cycle: Annotated[int, Field(ge=0)]
    """0: the training itself. Else a further cycle of the schedule, which goes on from the training's weights: another
    snapshot of the same run."""
    reasons: tuple[str, ...] = ()
    """Why the numbers are what they are."""

    @property
    def judged_on(self) -> str:
        """Which images the model is judged on, for people."""
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
                "one cached view can not be small and full-size; set small_steps to 0, or cached_views to 2"
            )
        if self.refit and self.steps and not self.refit_steps:
            raise ValueError("a refit needs at least one step; set refit_steps, or refit to false")
        if self.cycle and not self.steps:
            raise ValueError("a further cycle goes on from a training, but this plan has no steps; set cycle to 0")
        if self.fold > (self.folds if self.validation == "cross_validation" else 0):
            raise ValueError(f"fold {self.fold} is none of a {self.validation} in {self.folds} parts; set fold to 0")
        if self.patience and self.validation == "cross_validation":
            raise ValueError(
                "stopping early needs images that are held out in one training, but these are cross-validated; give a "
                "validation split, or set patience to 0"
            )
        if self.strategy == "scratch" and (self.weights != "random" or self.steps == 0):
            raise ValueError("the strategy scratch needs weights: random and at least one step")
        if self.strategy == "partial" and not 1 <= self.trainable_stages < len(self.stages):
            raise ValueError(
                f"the strategy partial trains 1 to {len(self.stages) - 1} of the last stages; set the learning "
                f"rates of "
                f"the lower ones to 0"
            )
        return self

    @property
    def noise_seed(self) -> int:
        """Seed of what differs between trainings that are averaged: each cycle has its own."""
        return self.training_seed + self.cycle

    @property
    def small_views(self) -> int:
        """How many of the cached views are small."""
        return small_views(self.cached_views, self.small_steps, self.steps)

    @property
    def trainable_stages(self) -> int:
        """How many of the last stages have a learning rate."""
        count = 0
        for stage in reversed(self.stages):
            if stage.learning_rate == 0:
                break
            count += 1
        return count


def plan_of_refit(plan: Plan) -> Plan:
    """Return the plan of the last training, on all images: shorter and with lower rates, where it goes on."""
    if not plan.steps or not plan.refit_steps or plan.validation == "cross_validation":
        return plan
    return shortened(plan, plan.refit_steps, REFIT_RATE).changed(small_steps=0)


def plan_of_cycle(plan: Plan) -> Plan:
    """Return the plan of a further cycle, where it is one: shorter and with lower rates than the training before it.

    Cycles that all start from the first solution, with a small rate, leave snapshots that differ and are good
    (Huang et al. 2017; Sadrtdinov et al. 2023 for the start after transfer).
    """
    if not plan.cycle or not plan.steps:
        return plan
    return shortened(plan, max(1, round(CYCLE_SHARE * plan.steps)), CYCLE_RATE).changed(small_steps=0)


def shortened(plan: Plan, steps: int, rate: float = 1.0) -> Plan:
    """Return a plan of fewer steps, with its warm-up and the horizon of its average in proportion.

    Args:
        plan: has at least one step.
        steps: at least one.
        rate: what all learning rates are multiplied by.
    """
    longer = plan.steps / steps
    return plan.changed(
        steps=steps,
        warmup_steps=min(round(plan.warmup_steps / longer), steps - 1),
        small_steps=min(round(plan.small_steps / longer), steps - 1),
        head_learning_rate=plan.head_learning_rate * rate,
        stages=[stage.changed(learning_rate=stage.learning_rate * rate) for stage in plan.stages],
        average_decay=max(0.0, 1.0 - (1.0 - plan.average_decay) * longer),
    )
