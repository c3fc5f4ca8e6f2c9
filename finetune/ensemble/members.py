"""Train the members of an ensemble and recommend which of them, or which average, to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.data import ImageSplits
from finetune.decide.members import PlannedRun
from finetune.ensemble.averages import blend, fold_models, soup, with_flips
from finetune.ensemble.recommendation import Offer, Option, recommend
from finetune.predict.model import TrainedModel, average
from finetune.processes import is_main_process
from finetune.progress import Progress
from finetune.training import Checkpoints, Training

FLIPPED, BLENDED, SOUP = "with test-time flips", "blend with the linear probe", "soup"
"""What else could ship of an ensemble of one network."""


TrainedMember = tuple[PlannedRun, TrainedModel]
"""Why and how something was trained, and what came of it."""


def _train_all(
    members: Sequence[PlannedRun],
    winner: Training | None,
    splits: ImageSplits,
    folder: Path,
    progress: Progress,
) -> tuple[list[TrainedMember], dict[str, TrainedModel]]:
    """Train every member to its end; of an ensemble of one network the first alone, where it did harm: snapshots go on
    from it, and other seeds go the same way.

    Returns:
        the members with their models; of an ensemble of one network, its first member with test-time flips where labels
        allow them, and with weights nearer to the linear probe's; and the soup if it is better than the best member.
    """
    if members[0].choice.ensemble == "folds":
        return _train_folds(members, splits, folder, progress), {}
    trained: list[TrainedMember] = []
    trainings: list[Training] = []
    is_one_network = members[0].choice.ensemble.startswith(("seeds", "snapshots"))
    for own in members:
        told = _naming(progress, own.name) if len(members) > 1 else progress
        earlier = trainings[0] if own.plan.cycle else None
        training = winner or _begin(own, splits, folder, told, earlier, keeps_weights=is_one_network)
        trainings.append(training)
        trained.append((own, training.finish()))
        if is_one_network and trained[0][1].harm:
            return trained, {}
    if not is_one_network:
        return trained, {}
    finished = [(training, model) for training, (_, model) in zip(trainings, trained, strict=True) if not model.harm]
    return trained, _mixtures(finished)


def _train_folds(
    members: Sequence[PlannedRun], splits: ImageSplits, folder: Path, progress: Progress
) -> list[TrainedMember]:
    """Train the first member: the others are the folds that judge it."""
    training = _begin(members[0], splits, folder, progress, keeps_weights=True)
    model = training.finish()
    if model.harm:
        return [(members[0], model)]
    return list(zip(members, [model, *fold_models(training, model)], strict=True))


def _mixtures(finished: Sequence[tuple[Training, TrainedModel]]) -> dict[str, TrainedModel]:
    """Return what else trainings of one network give, by name."""
    found: dict[str, TrainedModel] = {}
    training, _ = finished[0]
    plan = training.plan
    if plan.augmentation.horizontal_flip and not plan.test_time_flips:
        found[FLIPPED] = with_flips(training)
    if plan.strategy not in {"linear_probe", "scratch"}:
        found[BLENDED] = blend(training)
    mixed = soup(finished) if plan.strategy != "scratch" else None  # random weights have no mean that is good
    return found if mixed is None else {**found, SOUP: mixed}


def _recommended(
    kept: list[TrainedMember], mixtures: Mapping[str, TrainedModel]
) -> tuple[list[TrainedMember], tuple[Option, ...]]:
    """Return what ships of an ensemble or of an average of candidates, and what could have."""
    leading = kept[0][0]
    if leading.choice.ensemble == "folds" or len(kept) + len(mixtures) < 2:
        return kept, ()  # folds hold different images out, which can not tell what their mean is worth
    seconds = [model.seconds for _, model in kept]
    latency = [1e3 / own.evidence.speed.forward_images_per_second for own, _ in kept]
    entries = [
        (Offer(name=each[0].label, model=each[1], train_seconds=took, predict_milliseconds=needs), [each])
        for each, took, needs in zip(kept, seconds, latency, strict=True)
    ]
    for name, model in mixtures.items():
        passes = 2 if name == FLIPPED else 1
        took = sum(seconds) if name == SOUP else seconds[0]
        offer = Offer(name=name, model=model, train_seconds=took, predict_milliseconds=passes * latency[0])
        entries.append((offer, [(replace(leading, plan=model.plan), model)]))
    if len(kept) > 1:
        mean = average([model for _, model in kept])
        name = f"mean of {len(kept)}"
        offer = Offer(name=name, model=mean, train_seconds=sum(seconds), predict_milliseconds=sum(latency))
        entries.append((offer, kept))
    options = recommend([offer for offer, _ in entries], asked=len(entries) - 1 if len(kept) > 1 else 0)
    ships = next(each for option, (_, each) in zip(options, entries, strict=True) if option.recommended)
    return ships, options


def _begin(
    own: PlannedRun,
    splits: ImageSplits,
    folder: Path,
    progress: Progress,
    earlier: Training | None = None,
    keeps_weights: bool = False,
) -> Training:
    checkpoints = Checkpoints(folder / own.name, writes=is_main_process())
    checkpoints.begin()
    return Training(own.plan, splits, progress, checkpoints, earlier=earlier, keeps_weights=keeps_weights)


def _naming(progress: Progress, name: str) -> Progress:
    """Return a progress that says whose tasks these are."""
    return lambda task, done, total: progress(f"{name}: {task}", done, total)
