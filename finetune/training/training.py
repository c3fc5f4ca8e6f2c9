"""From a plan and splits to a trained model: what the head starts from, where it pauses, what ships."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from finetune.data import ImageSplits, Pixels, labels_of
from finetune.data.batches import (
    Images,
    PlainImages,
    Share,
    StepSampler,
    StreamedBatches,
    VariedImages,
    make_loader,
    make_stream_loader,
    normaliser,
)
from finetune.decide.plan import Plan
from finetune.decide.workload import cost_per_image, small_cost, tail_share
from finetune.device import MEMORY_FORMATS, autocast, best_device
from finetune.errors import DivergenceError
from finetune.history import Row
from finetune.network.backbone import check_stages, create_network, find_head, load_head, profile_stages, set_trainable
from finetune.network.co_tuning import without_source
from finetune.network.cpu.folding import FoldedNorms
from finetune.network.cpu.threads import ThreadTeam
from finetune.network.outputs import Outputs, count_work, digest_weights, frozen_features
from finetune.network.tail import Tail, cut
from finetune.predict.linear_probe import LinearHead, fit_large_head
from finetune.predict.metrics import score, softmax
from finetune.predict.model import HeldOut, TrainedModel, fit_temperature, scores_of
from finetune.processes import first_alone, from_main_process, share_out
from finetune.progress import Progress, no_progress
from finetune.training.cached_activations import Activations, KeptActivations, keep_activations
from finetune.training.checkpoints import Checkpoints
from finetune.training.evaluation import Evaluation, HeldOutPredictions, is_worse
from finetune.training.loop import make_accelerator, train_steps
from finetune.training.phases import Phase, judged_by, plan_phases, seen_by
from finetune.training.task import Task
from finetune.work import Work

RELATED_AT_ONCE = 4096
"""Images whose source classes are looked at together."""

BUDGETED = 0.95
"""Share of a time budget that training steps may fill: held-out images are judged and the model is kept in the rest."""


def train(
    plan: Plan, splits: ImageSplits, progress: Progress = no_progress, checkpoints: Checkpoints | None = None
) -> TrainedModel:
    """Return the model that `plan` makes of the training (and validation) images; the test split is not looked at.

    Args:
        plan: what to do.
        splits: labelled images.
        progress: told what is going on.
        checkpoints: where to keep and find what is needed to go on after an interruption.

    Raises:
        ModelError: weights that are not to be had, or stages that are not the network's.
        DivergenceError: the training diverged.
    """
    return Training(plan, splits, progress, checkpoints).finish()


class Training:
    """A plan that is carried out: it can pause, be looked at, and go on from there.

    Its trainings share the network, the images, frozen features and kept activations.
    """

    def __init__(
        self,
        plan: Plan,
        splits: ImageSplits,
        progress: Progress = no_progress,
        checkpoints: Checkpoints | None = None,
        earlier: "Training | None" = None,
        keeps_weights: bool = False,
    ) -> None:
        """Prepare the network and the images; the arguments and errors are those of `train`.

        Args:
            plan: what to do.
            splits: labelled images.
            progress: told what is going on.
            checkpoints: where to keep and find what is needed to go on after an interruption.
            earlier: the finished training that a further cycle goes on from; None: where the plan is one, that training
                is done first.
            keeps_weights: whether to keep what every phase leaves of the network, which a further cycle needs.
        """
        self.seconds = 0.0
        """Spent so far."""
        self._others = 0.0
        with self._timed():
            self.plan = plan
            self.checkpoints = checkpoints or Checkpoints(None)
            self.progress = progress
            self._keeps_weights = keeps_weights
            self._prepare(splits)
            self._earlier = earlier
            if plan.cycle and earlier is None:
                before = self.checkpoints.before()
                self._earlier = Training(plan.changed(cycle=0), splits, progress, before, keeps_weights=True)
                self._earlier.finish()

    def _prepare(self, splits: ImageSplits) -> None:
        """Make the network, the images and the features ready."""
        plan, progress = self.plan, self.progress
        self.history: list[Row] = []
        self.work = Work()
        """So far."""
        self.phases = plan_phases(plan, splits)
        self.class_names = splits.class_names
        torch.manual_seed(plan.training_seed)
        network, _ = create_network(
            plan.model,
            plan.weights,
            len(splits.class_names),
            plan.preprocessing.image_size,
            keeps_source_head=plan.co_tuning > 0,
        )
        check_stages(network, plan)
        self.network = network.to(best_device()).to(memory_format=MEMORY_FORMATS[plan.forward.layout])
        tables = [splits.train]
        if splits.validation is not None and plan.validation == "given":
            tables.append(splits.validation)
        self.labels = np.concatenate([labels_of(table) for table in tables])
        self.stream = splits.stream
        self.pixels = Pixels(tables, plan.preprocessing.shorter_side)
        with first_alone():
            self.work += self.pixels.keep(progress)
        self.plain = PlainImages(self.pixels, plan.preprocessing)
        if plan.batch_norm_statistics == "re_estimated":
            self._re_estimate_statistics()
        self._weights = digest_weights(network, leave_out=find_head(network)[0])
        self._start = self._state()
        # Views that are kept serve trainings with other seeds, too, which see them in another order.
        seed = plan.seed if plan.cached_views else plan.noise_seed
        self.varied = VariedImages(self.pixels, plan.preprocessing, plan.augmentation, seed)
        with first_alone():
            self.features = None if plan.strategy == "scratch" else self._features()
        self.kept: KeptActivations | None = None
        self._results: dict[tuple[str, int], _Result] = {}
        self._steps_counted: dict[str, int] = {}
        self._started_from: LinearHead | None = None
        self.weights: dict[str, dict[str, Tensor]] = {}
        """What finished phases left of the network: those that ship, and all where they are kept."""

    def look(self, share: float = 1.0) -> HeldOutPredictions:
        """Train up to a share of the steps, of every fold, and judge the held-out images there.

        What was looked at goes on later from where it paused and ends as if it had not; for this it needs checkpoints
        that are kept.

        Args:
            share: of the steps; 0 judges what the training starts from, 1 leaves nothing but the refit.

        Raises:
            DivergenceError: the training diverged.
        """
        with self._timed():
            judged = [(phase, self._run(phase, _part(phase, share))) for phase in self.phases if len(phase.held_out)]
        return self._look(judged)

    def _look(self, judged: Sequence[tuple[Phase, "_Result"]]) -> HeldOutPredictions:
        members = np.concatenate([phase.held_out for phase, _ in judged])
        order = np.argsort(members)
        probes = [result.probe for _, result in judged if result.probe is not None]
        return HeldOutPredictions(
            members=members[order],
            labels=self.labels[members[order]],
            logits=np.concatenate([result.logits for _, result in judged])[order],
            probe=np.concatenate(probes)[order] if probes else None,
        )

    def rows(self) -> list[Row]:
        """Return the history so far, with that of trainings that paused."""
        paused = [self.checkpoints.step(phase.name) for phase in self.phases]
        return [*self.history, *(row for checkpoint in paused if checkpoint for row in checkpoint["history"])]

    def finish(self) -> TrainedModel:
        """Train to the end and return the model that ships: the linear probe, where training it only did harm.

        Raises:
            DivergenceError: the training diverged.
        """
        look = self.look()
        if look.probe is not None and self.plan.test_time_flips:
            flipped, _ = self._look_with(self.probe_weights(), self.plan)
            look = replace(look, probe=flipped.logits)
        if look.probe is not None and self._does_harm(look):
            return self._probe_instead(look.logits, look.probe, look.labels)
        with self._timed():
            for phase in self.phases:
                self._run(phase, phase.plan.steps)
        return self._model(look.logits, look.labels)

    def probe_weights(self) -> dict[str, dict[str, Tensor]]:
        """Return what each phase would leave of the network if it were a linear probe, as `weights`.

        Raises:
            ValueError: the plan trains from random weights, so that there is no probe.
        """
        if self.features is None:
            raise ValueError("a training from random weights has no linear probe")
        own = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        found = {}
        for phase in self.phases:
            self._back_to_probe(phase)
            found[phase.name] = self._state()
        self.network.load_state_dict(own)
        return found

    def with_weights(self, weights: Mapping[str, dict[str, Tensor]], plan: Plan | None = None) -> TrainedModel:
        """Return a model with other weights than the training's own, or one that predicts by another plan, judged on
        the images that the training held out.

        Args:
            weights: what each phase would have left of the network, as `weights`, which must have been kept.
            plan: by which it predicts; None: the training's.
        """
        plan = plan or self.plan
        look, network = self._look_with(weights, plan)
        return replace(self._model(look.logits, look.labels), network=network, plan=plan)

    def _look_with(self, weights: Mapping[str, dict[str, Tensor]], plan: Plan) -> tuple[HeldOutPredictions, nn.Module]:
        """Judge the held-out images with other weights; return the network that would ship, too."""
        judged = []
        for phase in self.phases:  # of which the last one ships
            network = self.network_with(weights[phase.name])
            if len(phase.held_out):
                send = partial(scores_of, network, self.pixels, plan)
                judged.append((phase, _Result(share_out(send, phase.held_out))))
        return self._look(judged), network

    def network_with(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of the network with what a phase left of it (`weights`), as it would ship."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(state)
        return without_source(network, find_head(network)[0]).eval()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add what happens inside to the seconds that were spent."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - self._since

    def _allowance(self, phase: Phase) -> float | None:
        """Return the seconds that the rest of a phase may take: its share, by steps, of what the budget leaves."""
        if not self.plan.time_budget:
            return None
        left = {
            each.name: each.plan.steps - self._steps_counted.get(each.name, 0)
            for each in self.phases
            if (each.name, each.plan.steps) not in self._results  # which may have ended in fewer steps
        }
        budget = BUDGETED * self.plan.time_budget - self._others
        return (budget - self._spent()) * left[phase.name] / max(sum(left.values()), 1)

    def _spent(self) -> float:
        """Return the seconds up to now, inside `_timed`."""
        return self.seconds + time.perf_counter() - self._since

    def spend(self, seconds: float) -> None:
        """Count what others took against the time budget."""
        self._others = seconds

    def _does_harm(self, look: HeldOutPredictions) -> bool:
        probe = look.probe
        if probe is None:
            return False
        # Processes may differ in the last digit, and must not differ in what they decide.
        return from_main_process(lambda: is_worse(look.logits, probe, look.labels, self.plan.metric))

    def _back_to_probe(self, phase: Phase) -> None:
        """Make the network what a linear probe of the phase's images is."""
        self.network.load_state_dict(self._start)
        self._start_head(phase)
        self._adjust_head(phase)

    def _state(self) -> dict[str, Tensor]:
        """Return a copy of the network's weights."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.network.state_dict().items()}

    def _probe_instead(
        self, trained: NDArray[np.float32], probe: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> TrainedModel:
        self._back_to_probe(self.phases[-1])
        top1 = [100 * float((scores.argmax(axis=1) == labels).mean()) for scores in (trained, probe)]
        harm = f"{top1[0]:.1f} % of the held-out images are right with it, {top1[1]:.1f} % before it"
        return replace(
            self._model(probe, labels),
            harm=harm,
            note=f"training did harm: {harm}, so the linear probe ships; a lower rate may help: "
            f"--set training.learning_rate={self.plan.head_learning_rate / 4:.0e}",
        )

    def _model(self, scores: NDArray[np.float32], labels: NDArray[np.int64]) -> TrainedModel:
        temperature = fit_temperature(scores, labels)
        held_out = HeldOut(labels=labels, probabilities=softmax(scores / temperature))
        return TrainedModel(
            network=without_source(self.network, find_head(self.network)[0]).eval(),
            plan=self.plan,
            class_names=self.class_names,
            temperature=temperature,
            history=tuple(self.history),
            validation=score(held_out.probabilities, labels, list(self.class_names)),
            held_out=held_out,
            work=self.work,
            seconds=self.seconds,
        )

    def _run(self, phase: Phase, until: int) -> "_Result":
        """Train on the phase's images up to a step; return the logits of those it holds out."""
        if (phase.name, until) in self._results:
            return self._results[phase.name, until]
        is_last = until == phase.plan.steps
        is_kept = is_last and (
            self._keeps_weights or any(phase is each for each in (self.phases[-1], self.phases[-1].earlier))
        )
        name = phase.name if is_last else f"{phase.name}-at-{until}"
        finished = self.checkpoints.finished(name)
        if finished is not None:
            if is_kept:
                self.network.load_state_dict(finished["network"])
            self.history += finished["history"]
            self.work += Work(**finished["work"])
            self.seconds += finished["seconds"]
            self._steps_counted[phase.name] = finished["steps"]
            parts = {name: part.numpy() for name, part in finished["result"].items()}
            result = _Result(**parts)
        else:
            before, rows, spent = self.work, len(self.history), self._spent()
            self._go_on_from(phase)
            result = self._fit(phase, until) if self.plan.steps else self._probe(phase)
            self.checkpoints.finish(
                name,
                {
                    "network": self.network.state_dict() if is_kept else {},
                    "history": self.history[rows:],
                    "work": (self.work - before).model_dump(),
                    "seconds": self._spent() - spent,
                    "steps": self._steps_counted.get(phase.name, 0),
                    "result": {
                        name: torch.from_numpy(part) for name, part in result._asdict().items() if part is not None
                    },
                },
            )
        if is_kept:
            self.weights[phase.name] = self._state()
        self._results[phase.name, until] = result
        return result

    def _go_on_from(self, phase: Phase) -> None:
        """Put the weights into the network that a phase starts from."""
        if phase.earlier is not None and phase.plan.steps:
            self.network.load_state_dict(self.weights[phase.earlier.name])
            self._adjust_head(phase.earlier, takes_out=False)
            return
        self.network.load_state_dict(self._start)
        self._start_head(phase)
        if self._earlier is not None:
            self.network.load_state_dict(self._earlier.weights[phase.name])
            self._adjust_head(phase, takes_out=False)

    def _re_estimate_statistics(self) -> None:
        """Make the batch norms' running statistics those of the images (Li et al. 2017, AdaBN)."""
        device = next(self.network.parameters()).device
        normalise = normaliser(self.plan.preprocessing, device, self.plan.forward.layout)
        loader = make_loader(self.plain, device, workers=0)
        update_bn((normalise(pixels) for pixels, _ in loader), self.network)
        self.work += Work(forward_images=len(self.plain), forward_equivalents=float(len(self.plain)))

    def _features(self) -> Outputs:
        features = frozen_features(
            self.network, self.plain, self.plan.preprocessing, self.plan.forward, self._weights, self.progress
        )
        self.work += count_work(features, self.pixels)
        return features

    def _start_head(self, phase: Phase) -> None:
        """Start from the linear probe of the phase's own images (Kumar et al. 2022: a random head distorts the
        features)."""
        if self.features is None:
            return
        head = self._started_from = fit_large_head(
            self.features,
            self.labels,
            phase.members,
            self.num_classes,
            self.plan.probe_inverse_regularization,
            balanced=self.plan.imbalance == "class_weights",
            exact=self.plan.steps == 0,  # a training moves it anyway
        )
        load_head(self.network, torch.from_numpy(head.weight), torch.from_numpy(head.bias))

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return int(find_head(self.network)[1].out_features)

    def _probe(self, phase: Phase) -> "_Result":
        """Return the probe's logits of the held-out images: their features are there already."""
        if self.features is None:
            raise ValueError("a plan without steps needs features")
        self._adjust_head(phase)
        if self.plan.test_time_flips:
            return _Result(share_out(partial(scores_of, self.network, self.pixels, self.plan), phase.held_out))
        _, layer = find_head(self.network)
        head = LinearHead(weight=layer.weight.detach().cpu().numpy(), bias=layer.bias.detach().cpu().numpy())
        return _Result(head.logits_of(self.features, phase.held_out))

    def _fit(self, phase: Phase, until: int) -> "_Result":
        plan = phase.plan
        accelerator = make_accelerator(plan)
        groups = set_trainable(self.network, plan)
        normalise = normaliser(plan.preprocessing, accelerator.device, plan.forward.layout)
        keeps = plan.cached_views and not accelerator.is_fsdp2  # a shard has no lower part that could be done without
        tail = cut(self.network, plan.trainable_stages, plan.preprocessing.image_size) if keeps else None
        module: nn.Module = self.network if tail is None else tail
        source: Images = self.varied
        if tail is not None:
            groups = {stage: [f"network.{name}" for name in names] for stage, names in groups.items()}
            source = self._kept_activations(tail)

        def prepare(inputs: Tensor) -> Tensor:
            if inputs.dtype == torch.uint8:
                return normalise(inputs)
            return inputs.to(accelerator.device, torch.float32, non_blocking=True)

        def judge_some(members: list[int]) -> NDArray[np.float32]:
            if tail is not None and self.kept is not None and not plan.test_time_flips:
                return _tail_logits(tail, self.kept.plain, members, plan)
            return scores_of(self.network, self.pixels, self.plan, members)

        def judge(judged: NDArray[np.intp] = phase.held_out) -> NDArray[np.float32]:
            return share_out(judge_some, judged)

        evaluation = Evaluation(judge, self.labels, phase.held_out, seen_by(phase, plan.seed))
        history: list[Row] = []
        resumed = self.checkpoints.step(phase.name)
        self.seconds += self._before_interruption(phase, resumed)
        task = Task(
            name=phase.name,
            module=module,
            groups=groups,
            make_loader=partial(self._loader, phase, source, accelerator),
            prepare=prepare,
            labels=torch.from_numpy(self.labels) if self.stream is None else torch.arange(self.num_classes),
            class_weights=self._class_weights(phase).to(accelerator.device),
            relation=self._relation(phase, accelerator.device),
            on_step=lambda step: self.progress(f"training ({phase.name})", step, plan.steps),
            # Of the folds one is looked at on its way, for its curve.
            evaluate=evaluation.evaluate if phase is self.phases[0] else None,
            details=evaluation.details,
            save=partial(self.checkpoints.save_step, phase.name),
            resumed=resumed,
            until=until,
            seconds=self._allowance(phase),
            history=history,
        )
        try:
            reached = train_steps(task, plan, accelerator)
        except DivergenceError as error:
            raise DivergenceError(str(error), [*self.history, *error.history]) from None
        self._count_training(plan, range(self._steps_counted.get(phase.name, 0), reached.step))
        self._steps_counted[phase.name] = reached.step
        if until == plan.steps:
            self.history += history
        result = self._judged(phase, judge, reached.is_over)
        if tail is not None:
            tail.release()
        return result

    def _before_interruption(self, phase: Phase, resumed: dict[str, Any] | None) -> float:
        """Return the seconds that an earlier process trained for, up to the checkpoint that this one goes on from."""
        if resumed is None:
            return 0.0
        seconds = [0.0, *(float(row["seconds"]) for row in resumed["history"])]
        return seconds[-1] - seconds[self._steps_counted.get(phase.name, 0)]

    def _loader(self, phase: Phase, source: Images, accelerator: Accelerator, steps: range) -> DataLoader[Any]:
        """Return this process's share of the batches of some steps."""
        plan = phase.plan
        process = accelerator.process_index, accelerator.num_processes
        share = Share(plan.batch_size, steps, plan.noise_seed, *process, plan.small_steps)
        if self.stream is not None:
            batches = StreamedBatches(self.stream, plan.preprocessing, plan.augmentation, share)
            return make_stream_loader(batches, accelerator.device, plan.forward.loader_workers)
        workers = plan.forward.loader_workers if source is self.varied else 0
        return make_loader(source, accelerator.device, workers, StepSampler(phase.members.tolist(), share))

    def _judged(self, phase: Phase, judge: Callable[[], NDArray[np.float32]], is_over: bool) -> "_Result":
        """Return the logits of the held-out images; when it is over those of the probe, too."""
        self._adjust_head(phase)
        if not len(phase.held_out):
            return _Result(np.zeros((0, self.num_classes), dtype=np.float32))
        probe = None
        if is_over and self.features is not None and self._started_from is not None:
            probe = self._started_from.logits_of(self.features, phase.held_out) - self._shift(phase)
        return _Result(judge(), probe)

    def _kept_activations(self, tail: Tail) -> KeptActivations:
        """Return what the frozen stages make of the images; all trainings of the plan share it."""
        if self.kept is None:
            plan = self.plan
            self.kept = keep_activations(
                tail,
                self.varied,
                self.plain,
                np.unique(np.concatenate([phase.members for phase in self.phases])),
                np.unique(np.concatenate([judged_by(phase, plan.seed) for phase in self.phases])),
                plan.cached_views,
                plan.small_views,
                plan.preprocessing,
                plan.forward,
                self._weights,
                self.progress,
            )
            for number, kept in enumerate((*self.kept.views, self.kept.plain)):
                size = small_cost(plan.preprocessing) if number < plan.small_views else 1.0
                self.work += count_work(kept.outputs, self.pixels, share=size * (1.0 - self._tail_share()))
        return self.kept

    def _class_weights(self, phase: Phase) -> Tensor:
        """Return each class's weight in the loss, 1 on average over the images."""
        counts = np.bincount(self.labels[phase.members], minlength=self.num_classes).astype(np.float32)
        if self.plan.imbalance != "class_weights":
            return torch.ones(self.num_classes)
        weights = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / (counts > 0).sum(), 0.0)
        return torch.from_numpy(weights.astype(np.float32))

    def _relation(self, phase: Phase, device: torch.device) -> Tensor | None:
        """Return what the pretrained classifier takes the phase's classes for, where it is co-tuned."""
        if not self.plan.co_tuning or self.features is None:
            return None
        head, _ = find_head(self.network)
        weight, bias = (self._start[f"{head}.source.{part}"].numpy() for part in ("weight", "bias"))
        members = phase.members
        sums = np.zeros((self.num_classes, len(bias)))
        for part in np.array_split(members, max(1, len(members) // RELATED_AT_ONCE)):
            taken_for = softmax(LinearHead(weight=weight, bias=bias).logits_of(self.features, part))
            np.add.at(sums, self.labels[part], taken_for)
        counts = np.bincount(self.labels[members], minlength=self.num_classes)
        return torch.from_numpy((sums / np.maximum(counts, 1)[:, None]).astype(np.float32)).to(device)

    def _adjust_head(self, phase: Phase, takes_out: bool = True) -> None:
        """Take the classes' frequencies out of the logits, where planned; or put them back, to train on."""
        if self.plan.imbalance != "logit_adjustment":
            return
        _, head = find_head(self.network)
        with torch.no_grad():
            head.bias.sub_(torch.from_numpy(self._shift(phase)).to(head.bias.device), alpha=1.0 if takes_out else -1.0)

    def _shift(self, phase: Phase) -> NDArray[np.float32]:
        """Return the log of the classes' frequencies (Menon et al. 2021, post-hoc, tau = 1), or 0 where not planned."""
        if self.plan.imbalance != "logit_adjustment":
            return np.zeros(self.num_classes, dtype=np.float32)
        counts = np.bincount(self.labels[phase.members], minlength=self.num_classes)
        shift: NDArray[np.float32] = np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32)
        return shift

    def _count_training(self, plan: Plan, steps: range) -> None:
        images = len(steps) * plan.batch_size
        small = len(range(steps.start, min(steps.stop, plan.small_steps))) * plan.batch_size
        whole = images - small * (1.0 - small_cost(plan.preprocessing))
        tail = self._tail_share() if plan.strategy == "partial" else 1.0
        cost = cost_per_image(plan.strategy, tail, cached=self.kept is not None)
        if plan.strategy == "linear_probe":
            cost = 1.0  # the frozen network runs in every step, the head's own work is nothing beside it
        self.work += Work(forward_images=images, backward_images=images, forward_equivalents=round(whole * cost, 1))
        if self.stream is not None:
            self.work += Work(decoded_images=images)
        elif self.kept is None and not self.pixels.is_kept:
            self.work += self.pixels.reading(images)

    def _tail_share(self) -> float:
        return tail_share(profile_stages(self.network, self.plan.preprocessing.image_size), self.plan.trainable_stages)


class _Result(NamedTuple):
    """The logits of the images that a training holds out, and those of the probe before it."""

    logits: NDArray[np.float32]
    probe: NDArray[np.float32] | None = None


def _part(phase: Phase, share: float) -> int:
    """Return a share of a phase's steps: none of nothing, else at least one where it has any."""
    return max(1, round(share * phase.plan.steps)) if phase.plan.steps and share else 0


def _tail_logits(tail: Tail, plain: Activations, members: list[int], plan: Plan) -> NDArray[np.float32]:
    device = next(tail.parameters()).device
    tail.eval()
    parts = np.array_split(np.asarray(members, dtype=np.intp), max(1, -(-len(members) // plan.forward.batch_size)))
    with ThreadTeam(plan.forward.parallel_parts, plan.forward.num_threads) as streams:
        folded = FoldedNorms(lambda: tail(plain.of(members[:1]).to(device, torch.float32)))

        def send(part: NDArray[np.intp]) -> NDArray[np.float32]:
            with torch.inference_mode(), autocast(device, plan.forward.precision), folded:
                scores: NDArray[np.float32] = tail(plain.of(part).to(device, torch.float32)).float().cpu().numpy()
                return scores

        return np.concatenate(list(streams.map(send, parts)))
