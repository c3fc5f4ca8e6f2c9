"""A run on disk: what was asked, measured, chosen and planned, the model, and how good it is. Nothing is
overwritten."""

import copy
import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from finetune.data import ImageSplits, labels_of, paths_of
from finetune.decide.choice import Choice
from finetune.decide.diagnosis import Verdict, diagnose
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.planned_run import PlannedRun, list_members
from finetune.device import MEMORY_FORMATS, best_device
from finetune.ensemble.recommendation import Option
from finetune.errors import RunFolderError
from finetune.history import Row
from finetune.network.backbone import takes_image_size
from finetune.predict.metrics import Metrics
from finetune.predict.model import Ensemble, Predictor, TrainedModel
from finetune.recipe import load_recipe, save_recipe
from finetune.runs.environment import describe_environment
from finetune.training import plan_phases
from finetune.value import FrozenModel
from finetune.work import Work

SCHEDULE = "schedule.svg"
"""The picture of the learning rates."""

PLAN_FILES = frozenset({"recipe.yaml", "evidence.json", "choice.json", "plan.json", SCHEDULE})
"""What a run folder holds before its training starts."""


class Seconds(FrozenModel):
    """What a run took."""

    evidence: float
    race: float
    train: float
    total: float


class RunMetrics(FrozenModel):
    """How good the model of a run is, and what it cost."""

    validation: Metrics
    """On images that the network was not trained on; where there was a refit, from before it."""
    validation_source: str
    test: Metrics | None
    seconds: Seconds
    work: Work
    options: tuple[Option, ...] = ()
    """What could have shipped, where an ensemble was asked for."""
    note: str = ""
    """What a person must know of how the model came about."""
    verdicts: tuple[Verdict, ...] = ()
    """What stands out in the training's history; of an ensemble each member has its own."""


class Averaged(FrozenModel):
    """What makes an ensemble of several run folders."""

    members: tuple[str, ...]
    """Their folders, below the ensemble's."""
    temperature: float
    """The logarithm of their mean probabilities is divided by it."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where interrupted trainings are kept, each under the name of its candidate."""
        return self.path / "checkpoints"

    def holds_only_a_plan(self) -> bool:
        """Return whether training has not started yet."""
        names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        return "plan.json" in names and names <= PLAN_FILES

    def is_finished(self) -> bool:
        """Return whether there is a model."""
        return (self.path / "metrics.json").exists()

    def holds_tuning(self) -> bool:
        """Return whether hyper-parameters are, or were, searched for here."""
        return (self.path / "tuning.json").exists()

    def trial(self, number: int) -> Path:
        """Return the folder of a trial of a search for hyper-parameters: its plan and its history."""
        return self.path / "trials" / str(number)

    def refuse_if_finished(self) -> None:
        """Raise RunFolderError where there is a model."""
        if self.is_finished():
            raise RunFolderError(f"the run in {self.path} is finished; there is nothing to resume")

    def refuse_if_taken(self) -> None:
        """Raise RunFolderError unless the folder is new, empty, or holds only a plan."""
        if not self.path.exists() or self.holds_only_a_plan():
            return
        if not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; give a new folder with --output")
        if self.is_finished():
            raise RunFolderError(
                f"{self.path} holds another run, which is not overwritten; give a new folder with --output"
            )
        if (self.path / "plan.json").exists():
            raise RunFolderError(
                f"{self.path} holds an interrupted run, which is not overwritten; go on with it: --resume {self.path}"
            )
        if any(self.path.iterdir()):
            raise RunFolderError(f"{self.path} is not empty and no run folder; give a new folder with --output")

    def begin(self, decisions: PlannedRun) -> None:
        """Write what was asked, measured, chosen and planned, unless another run took the folder meanwhile."""
        self.refuse_if_taken()
        self.write_decisions(decisions)

    def write_decisions(self, decisions: PlannedRun) -> None:
        """Write what was asked, measured, chosen and planned."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_recipe(decisions.recipe, self.path / "recipe.yaml")
        decisions.evidence.save(self.path / "evidence.json")
        decisions.plan.save(self.path / "plan.json")
        self.write_choice(decisions.choice)

    def write_choice(self, choice: Choice) -> None:
        """Write what was chosen."""
        choice.save(self.path / "choice.json")

    def write_members(self, members: Sequence[PlannedRun]) -> None:
        """Write what was decided for each member of an ensemble, into a run folder of its own."""
        for number, own in enumerate(members, start=1):
            self.member(number).write_decisions(own)

    def read_members(self) -> tuple[PlannedRun, ...]:
        """Return what `write_members` wrote; where there is nothing, what follows from what leads."""
        numbers = sorted(int(path.name) for path in (self.path / "members").glob("[0-9]*"))
        return tuple(self.member(number).read_decisions() for number in numbers) or list_members(
            self.read_decisions(), []
        )

    def member(self, number: int) -> "RunFolder":
        """Return the folder of an ensemble's member; they are numbered from 1 on."""
        return RunFolder(self.path / "members" / str(number))

    def did_harm(self, name: str) -> "RunFolder":
        """Return the folder of a training that did harm and does not ship: what was decided and its history."""
        return RunFolder(self.path / "did_harm" / name)

    def write_schedule(self, plan: Plan) -> None:
        """Draw the plan's learning rates."""
        from finetune.runs.plots import plot_schedule

        plot_schedule(plan, self.path / SCHEDULE)

    def read_decisions(self) -> PlannedRun:
        """Return what `write_decisions` wrote.

        Raises:
            RunFolderError: there is no plan here.
            RecipeError: something else is missing or wrong.
        """
        return PlannedRun(
            plan=self.read_plan(),
            recipe=load_recipe(self.path / "recipe.yaml"),
            evidence=Evidence.load(self.path / "evidence.json"),
            choice=Choice.load(self.path / "choice.json"),
        )

    def read_plan(self) -> Plan:
        """Return the plan.

        Raises:
            RunFolderError: there is no run here.
        """
        if not (self.path / "plan.json").exists():
            raise RunFolderError(
                f"there is no run in {self.path}; expected a folder with plan.json, made by 'finetune train'"
            )
        return Plan.load(self.path / "plan.json")

    def read_metrics(self) -> RunMetrics:
        """Return how good the model is."""
        return RunMetrics.load(self.path / "metrics.json")

    @property
    def members(self) -> tuple["RunFolder", ...]:
        """The run folders of an ensemble's members, or this one alone."""
        if not (self.path / "ensemble.json").exists():
            return (self,)
        return tuple(RunFolder(self.path / name) for name in Averaged.load(self.path / "ensemble.json").members)

    def write_history(self, history: Sequence[Row]) -> None:
        """Write a training's history, one row a line."""
        (self.path / "history.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in history), "utf-8")

    def read_history(self) -> tuple[Row, ...]:
        """Return the history of a training that was finished, or that diverged.

        Raises:
            RunFolderError: there is none.
        """
        self.read_plan()
        if not (self.path / "history.jsonl").exists():
            raise RunFolderError(
                f"{self.path} holds no history yet, which is written when a training ends or diverges; train it: "
                f"finetune train --plan {self.path / 'plan.json'}, or, where it was interrupted, --resume {self.path}"
            )
        return tuple(json.loads(line) for line in (self.path / "history.jsonl").read_text("utf-8").splitlines())

    def write_model(
        self, model: Predictor, metrics: RunMetrics, splits: ImageSplits, members: Sequence[PlannedRun] = ()
    ) -> None:
        """Write the model, its history and its metrics; the metrics come last, so that they mark a finished run.

        Args:
            model: what ships.
            metrics: how good it is.
            splits: the images, of which it is written who held them out.
            members: why and how each member of an ensemble was trained.
        """
        if isinstance(model, Ensemble):
            self._write_ensemble(model, metrics, splits, members)
        if isinstance(model, TrainedModel):
            self._write_network(model)
        _write_splits(self.path / "splits.csv", model.plan, splits)
        self.write_history(model.history)
        environment = describe_environment()
        (self.path / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", "utf-8")
        metrics.save(self.path / "metrics.json")
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        if not isinstance(model, Ensemble):
            shutil.rmtree(self.path / "members", ignore_errors=True)

    def _write_ensemble(
        self, model: Ensemble, metrics: RunMetrics, splits: ImageSplits, members: Sequence[PlannedRun]
    ) -> None:
        """Write each member of an ensemble as a run of its own, and what averages them."""
        folders = []
        for number, (own, member) in enumerate(zip(members, model.members, strict=True), start=1):
            folders.append(f"members/{number}")
            folder = self.member(number)
            choice = own.choice.changed(members=(), ensemble="", racing=(), fallback="")
            folder.write_decisions(replace(own, choice=choice))
            seconds = metrics.seconds.changed(train=round(member.seconds, 2), total=round(member.seconds, 2))
            alone = metrics.changed(
                options=(),
                validation=member.validation,
                validation_source=member.plan.evaluated_on,
                test=member.test,
                seconds=seconds,
                work=member.work,
                note=member.note,
                verdicts=diagnose(member.history, member.plan, own.evidence),
            )
            folder.write_model(member, alone, splits)
        Averaged(members=folders, temperature=model.temperature).save(self.path / "ensemble.json")

    def _write_network(self, model: TrainedModel) -> None:
        preprocessing = model.plan.preprocessing
        side = preprocessing.image_size
        # The format knows neither devices nor layouts; the model itself stays as it is.
        network = copy.deepcopy(model.network).cpu().to(memory_format=torch.contiguous_format)
        save_for_hf(
            network,
            str(self.path),
            model_config={"label_names": list(model.class_names), "temperature": model.temperature},
            model_args={"img_size": side} if takes_image_size(model.plan.model) else None,
            safe_serialization=True,
            data_config={
                "input_size": (3, side, side),
                "crop_pct": side / preprocessing.shorter_side,
                "crop_mode": "center",
                "interpolation": preprocessing.interpolation,
                "mean": preprocessing.mean,
                "std": preprocessing.std,
            },
        )

    def read_model(self) -> Predictor:
        """Return the trained model, or the ensemble of several, ready to predict.

        Raises:
            RunFolderError: there is no finished run here.
        """
        if (self.path / "ensemble.json").exists():
            return self._read_ensemble()
        return self._read_network()

    def _read_ensemble(self) -> Ensemble:
        averaged = Averaged.load(self.path / "ensemble.json")
        members = [RunFolder(self.path / member)._read_network() for member in averaged.members]
        return Ensemble(
            members=tuple(members),
            plan=members[0].plan,
            class_names=members[0].class_names,
            temperature=averaged.temperature,
            validation=self.read_metrics().validation if self.is_finished() else None,
        )

    def _read_network(self) -> TrainedModel:
        plan = self.read_plan()
        try:
            config = json.loads((self.path / "config.json").read_text("utf-8"))
            state = load_file(self.path / "model.safetensors")
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{self.path} holds no finished run ({Path(str(error.filename or 'model.safetensors')).name} is "
                f"missing); "
                f"go on with it: finetune train --resume {self.path}"
            ) from None
        arguments: dict[str, Any] = {"img_size": plan.preprocessing.image_size} if takes_image_size(plan.model) else {}
        network = timm.create_model(plan.model, num_classes=len(config["label_names"]), **arguments)
        network.load_state_dict(state, strict=True)
        return TrainedModel(
            network=network.to(best_device()).to(memory_format=MEMORY_FORMATS[plan.forward.layout]).eval(),
            plan=plan,
            class_names=tuple(config["label_names"]),
            temperature=float(config["temperature"]),
            validation=self.read_metrics().validation if self.is_finished() else None,
        )


def default_folder(data: str) -> Path:
    """Return `runs/<data>-<time>`, which does not exist yet."""
    stem = Path(data.rstrip("/")).stem if ":" not in data else data.replace(":", "-").replace("/", "-")
    base = Path("runs") / f"{stem or 'images'}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def _write_splits(path: Path, plan: Plan, splits: ImageSplits) -> None:
    """Write each image's path, label and split, and which training held it out; the file is a table for --data."""
    held_out_by: dict[int, str] = {}
    for phase in plan_phases(plan, splits):
        held_out_by |= {int(index): phase.name for index in phase.held_out}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "held_out_by"])
        offset = 0
        for name, table in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
            if table is None:
                continue
            rows: Sequence[tuple[str, int]] = list(zip(paths_of(table), labels_of(table).tolist(), strict=True))
            for number, (image, label) in enumerate(rows):
                held = held_out_by.get(offset + number, "") if name != "test" else ""
                # A relative path would be looked for beside this file.
                place = str(Path(image).absolute()) if Path(image).exists() else image
                writer.writerow([place, splits.class_names[label], name, held])
            offset += len(table) if name != "test" else 0
