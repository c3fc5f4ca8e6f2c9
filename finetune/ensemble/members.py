"""Train the members of an ensemble, and recommend which of them or which average to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from finetune.data import ImageSplits
from finetune.decide.planned_run import PlannedRun
from finetune.ensemble.averages import blend, fold_models, soup, with_flips
from finetune.ensemble.recommendation import Offer, Option, recommend
from finetune.predict.model import TrainedModel, average
from finetune.processes import is_main_process
from finetune.progress import Progress, named_progress
from finetune.training import Checkpoints, TrainingState, begin, finish

FLIPPED, BLENDED, SOUP = "with test-time flips", "blend with the linear probe", "soup"
"""Names of the further models that trainings of one network offer, in addition to the members."""


class TrainedMember(NamedTuple):
    """A trained model, and the decisions that it was trained by."""

    planned: PlannedRun
    """Recipe, evidence, choice and plan of the training."""
    model: TrainedModel
    """Model that the training ended with; a linear probe if the training was rejected."""


def train_members(
    members: Sequence[PlannedRun],
    begun: TrainingState | None,
    splits: ImageSplits,
    folder: Path,
    progress: Progress,
) -> tuple[list[TrainedMember], dict[str, TrainedModel]]:
    """Train every member to its end.

    In an ensemble of one network, training stops after the first member if that member is rejected: snapshots continue
    from it, and trainings with other seeds would probably end in the same way.

    Args:
        members: planned runs to train: one, or the members of an ensemble.
        begun: paused training of the only member; None: the trainings have not begun.
        splits: labelled images; the test split is not used.
        folder: folder in which each training keeps its checkpoints, under its name.
        progress: called with the work in progress.

    Returns:
        The members with their models, and by name the further models that trainings of one network offer: with
        test-time flips (if flips keep the labels), blended with the linear probe, and the soup (if it beats the best
        member).

    Raises:
        DivergenceError: a training diverged.
    """
    if members[0].choice.ensemble == "folds":
        return _train_folds(members, splits, folder, progress), {}
    trained: list[TrainedMember] = []
    finished: list[tuple[TrainingState, TrainedModel]] = []
    is_one_network = members[0].choice.ensemble.startswith(("seeds", "snapshots"))
    for planned in members:
        named = named_progress(progress, planned.name) if len(members) > 1 else progress
        # Every further cycle continues from the finished first member.
        previous = finished[0][0] if planned.plan.cycle and finished else None
        state = begun or _begin_member(planned, splits, folder, named, previous, keeps_weights=is_one_network)
        state, model = finish(state)
        trained.append(TrainedMember(planned, model))
        finished.append((state, model))
        if is_one_network and trained[0].model.rejected:
            return trained, {}
    if not is_one_network:
        return trained, {}
    return trained, _other_models([(state, model) for state, model in finished if not model.rejected])


def recommend_members(
    trained: Sequence[TrainedMember], others: Mapping[str, TrainedModel]
) -> tuple[list[TrainedMember], tuple[Option, ...]]:
    """Return the members of the final model, and all options with their results on the held-out images.

    Args:
        trained: the members; none of them is rejected, unless there is only one.
        others: further models of the first member's network, by name.
    """
    leading = trained[0].planned
    if leading.choice.ensemble == "folds" or len(trained) + len(others) < 2:
        return list(trained), ()  # folds hold out different images, so there are none to compare them on
    # An option costs the seconds of all trainings that it needs; a prediction, the milliseconds of its forward passes.
    seconds = [member.model.seconds for member in trained]
    latency = [1e3 / member.planned.evidence.speed.forward_images_per_second for member in trained]
    entries = [
        (Offer(name=each.planned.label, model=each.model, train_seconds=took, predict_milliseconds=needs), [each])
        for each, took, needs in zip(trained, seconds, latency, strict=True)
    ]
    for name, model in others.items():
        # Flips need a second forward pass; a soup needs all trainings, but predicts as fast as one network.
        passes = 2 if name == FLIPPED else 1
        took = sum(seconds) if name == SOUP else seconds[0]
        offer = Offer(name=name, model=model, train_seconds=took, predict_milliseconds=passes * latency[0])
        entries.append((offer, [TrainedMember(replace(leading, plan=model.plan), model)]))
    if len(trained) > 1:
        mean = average([member.model for member in trained])
        name = f"mean of {len(trained)}"
        offer = Offer(name=name, model=mean, train_seconds=sum(seconds), predict_milliseconds=sum(latency))
        entries.append((offer, list(trained)))
    options = recommend([offer for offer, _ in entries], requested=len(entries) - 1 if len(trained) > 1 else 0)
    chosen = next(each for option, (_, each) in zip(options, entries, strict=True) if option.recommended)
    return chosen, options


def _begin_member(
    planned: PlannedRun,
    splits: ImageSplits,
    folder: Path,
    progress: Progress,
    previous: TrainingState | None = None,
    keeps_weights: bool = False,
) -> TrainingState:
    """Prepare a member's training, with its checkpoints below `folder`.

    The other arguments and the errors are those of `training.begin`.
    """
    checkpoints = Checkpoints(folder / planned.name, writes=is_main_process())
    checkpoints.begin()
    return begin(planned.plan, splits, progress, checkpoints, previous, keeps_weights)


def _train_folds(
    members: Sequence[PlannedRun], splits: ImageSplits, folder: Path, progress: Progress
) -> list[TrainedMember]:
    """Train the first member; its cross-validation trains the folds, which are the other members."""
    state, model = finish(_begin_member(members[0], splits, folder, progress, keeps_weights=True))
    if model.rejected:
        return [TrainedMember(members[0], model)]
    models = [model, *fold_models(state, model)]
    return [TrainedMember(planned, each) for planned, each in zip(members, models, strict=True)]


def _other_models(finished: Sequence[tuple[TrainingState, TrainedModel]]) -> dict[str, TrainedModel]:
    """Return the further models that finished trainings of one network offer, by name."""
    found: dict[str, TrainedModel] = {}
    state, _ = finished[0]
    plan = state.plan
    if plan.augmentation.horizontal_flip and not plan.test_time_flips:
        found[FLIPPED] = with_flips(state)
    if plan.strategy not in {"linear_probe", "scratch"}:
        found[BLENDED] = blend(state)
    mixed = soup(finished) if plan.strategy != "scratch" else None  # different random weights have no useful mean
    return found if mixed is None else {**found, SOUP: mixed}
