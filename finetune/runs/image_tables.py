"""Write and read the tables of a run's images: their splits, their predictions, and the files that were left out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import NDArray

from finetune.data import ImageSplits, groups_of, labels_of, paths_of
from finetune.data.label_sets import class_texts, divided, joined
from finetune.decide.answers import AnswerRule, best_answers
from finetune.decide.plan import Plan
from finetune.errors import RunFolderError
from finetune.files import replacing
from finetune.names import as_cell, quoted
from finetune.predict.links import log_losses
from finetune.predict.metrics import Metrics, score
from finetune.predict.model import HeldOut, Predictor
from finetune.predict.set_metrics import give_labels
from finetune.runs.places import resume_command
from finetune.training import plan_phases

SPLITS = "splits.csv"
"""Name of the file that lists all images with their splits."""

PREDICTIONS = "predictions.parquet"
"""Name of the file with the predictions of all images that were held out or tested. The metrics follow from it."""

LEFT_OUT = "left_out.csv"
"""Name of the file that lists the files that cannot be read as images, with the reasons."""

MOST_CLASSES = 100
"""Largest number of classes whose probabilities have a column each. With more of them, the most probable are listed."""

TOP = 10
"""Number of most probable classes that are listed for each image where there are more than `MOST_CLASSES`."""


def write_image_tables(folder: Path, model: Predictor, splits: ImageSplits) -> None:
    """Write the tables into a run folder.

    Args:
        folder: the folder.
        model: the final model of the run, with its predictions.
        splits: the images of the run.
    """
    with replacing(folder / SPLITS) as file:
        list_splits(model.plan, splits).to_csv(file, index=False)
    with replacing(folder / PREDICTIONS) as file:
        list_predictions(model, splits).to_parquet(file, index=False)
    if left_out := [*splits.unreadable, *splits.left_out]:
        with replacing(folder / LEFT_OUT) as file:
            pd.DataFrame([(as_cell(each.path), each.reason) for each in left_out], columns=["path", "reason"]).to_csv(
                file, index=False
            )


def list_splits(plan: Plan, splits: ImageSplits) -> pd.DataFrame:
    """Return each image's path, label and split, and the phase that held it out, as a table that `--data` accepts.

    Where the images have groups, a column `group` keeps them together in another run; it is empty in a split without.
    """
    held_out_by = {int(index): phase.name for phase in plan_phases(plan, splits) for index in phase.held_out}
    tables = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    groups = {name: groups_of(table) for name, table in tables.items() if table is not None}
    has_groups = any(found is not None for found in groups.values())
    parts, offset = [], 0
    for name, table in tables.items():
        if table is None:
            continue
        own = groups[name]
        grouped = {"group": "" if own is None else own} if has_groups else {}
        numbers = range(offset, offset + len(table)) if name != "test" else ()
        parts.append(
            pd.DataFrame(
                {
                    "path": places_of(table),
                    "label": class_texts(labels_of(table), splits.class_names),
                    "split": name,
                    "held_out_by": [held_out_by.get(number, "") for number in numbers] or "",
                    **grouped,
                }
            )
        )
        offset += len(table)
    return pd.concat(parts, ignore_index=True)


def list_predictions(model: Predictor, splits: ImageSplits) -> pd.DataFrame:
    """Return a table of the predictions of all images that were held out, then of all that were tested.

    Columns: path, split (`validation` or `test`, as in metrics.json), label, predicted, fold (of a cross-validation),
    probability (of the predicted class), label_probability (of the right class), then `p_<class>` for each class, or,
    with more than `MOST_CLASSES`, label_1, probability_1, ... of the `TOP` most probable ones. Where the answer is the
    least costly one, it is the predicted class, and every class has its column.

    Of sets of labels, label and predicted are all names with a delimiter between them, probability and
    label_probability are those of the whole sets (products over the classes), and every class has its column.

    Args:
        model: the final model of a run, with its predictions.
        splits: the images of the run.

    Raises:
        ValueError: the predictions are of other images.
    """
    phases = [phase for phase in plan_phases(model.plan, splits) if len(phase.held_out)]
    # Predictions of held-out images are in the order of the images, whichever fold they come from.
    indices = np.sort(np.concatenate([phase.held_out for phase in phases]))
    fold_of = {
        int(index): int(phase.name.removeprefix("fold-"))
        for phase in phases
        if phase.name.startswith("fold-")
        for index in phase.held_out
    }
    places = [place for part in (splits.train, splits.validation) if part is not None for place in places_of(part)]
    parts = []
    if model.held_out is not None:
        own = [places[index] for index in indices]
        folds = [fold_of.get(int(index)) for index in indices]
        parts.append(rows_of("validation", own, folds, model.held_out, model))
    if model.tested is not None and splits.test is not None:
        own = places_of(splits.test)
        parts.append(rows_of("test", own, [None] * len(own), model.tested, model))
    return pd.concat(parts, ignore_index=True)


def places_of(table: Dataset) -> list[str]:
    """Return the absolute path of each image, or its name or `image N` where it is not a file of its own.

    A relative path would be read relative to the table that lists it.
    """
    return [str(Path(path).absolute()) if Path(path).exists() else path for path in paths_of(table)]


def read_predictions(folder: Path) -> pd.DataFrame:
    """Return the predictions in a run folder, as `list_predictions` makes them.

    Raises:
        RunFolderError: there are no predictions; the sentence says how to get them.
    """
    if (folder / PREDICTIONS).exists():
        try:
            return pd.read_parquet(folder / PREDICTIONS)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise RunFolderError(f"{folder / PREDICTIONS} is damaged: {' '.join(str(error).split())[:200]}") from None
    if not (folder / "plan.json").exists():
        raise RunFolderError(f"there is no run in {folder}; expected a folder that 'finetune train' made")
    if not (folder / "metrics.json").exists():
        raise RunFolderError(
            f"the run in {folder} is not finished, so it has no predictions; continue it: {resume_command(folder)}"
        )
    raise RunFolderError(
        f"{folder} has no {PREDICTIONS}, because an earlier version made this run; train it again to get them: "
        f"finetune train --recipe {quoted(folder / 'recipe.yaml')}"
    )


def metrics_of(
    predictions: pd.DataFrame,
    split: str,
    class_names: list[str],
    thresholds: Sequence[float] | None = None,
    rule: AnswerRule | None = None,
) -> Metrics:
    """Return the metrics of the predictions of one split, equal to those in metrics.json.

    Args:
        predictions: predictions of a run.
        split: `validation` or `test`.
        class_names: names of all classes, in their order.
        thresholds: probability from which each label of a set is given; None: each image has one label.
        rule: rule by which the answers follow from the probabilities; None: they are the most probable classes.
    """
    rows = predictions[predictions["split"] == split]
    given = indices_of(rows["label"], class_names) if thresholds is None else divided(rows["label"], class_names)
    return score(probabilities_of(rows, class_names), given, class_names, thresholds, rule)


def probabilities_of(predictions: pd.DataFrame, class_names: Sequence[str]) -> NDArray[np.float64]:
    """Return the probabilities (n_images, n_classes) of predictions; those that are not listed are 0."""
    if f"p_{class_names[0]}" in predictions:
        return predictions[[f"p_{name}" for name in class_names]].to_numpy(np.float64)
    found = np.zeros((len(predictions), len(class_names)))
    rows = np.arange(len(predictions))
    listed = [("label", "label_probability")]
    listed += [(f"label_{rank}", f"probability_{rank}") for rank in range(1, TOP + 1)]
    for name, probability in listed:
        found[rows, indices_of(predictions[name], class_names)] = predictions[probability]
    return found


def indices_of(names: "pd.Series[str]", class_names: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each class in a column of a table, (n_images,)."""
    place = {name: number for number, name in enumerate(class_names)}
    return np.asarray([place[name] for name in names], dtype=np.int64)


def rows_of(
    split: str, places: list[str], folds: list[int | None], predicted: HeldOut, model: Predictor
) -> pd.DataFrame:
    """Return the predictions of one split as `list_predictions` lists them.

    Args:
        split: `validation` or `test`.
        places: path of each image.
        folds: fold of a cross-validation that held out each image, or None.
        predicted: probabilities and labels of the images.
        model: model that predicted them.

    Raises:
        ValueError: the numbers of images differ.
    """
    class_names, probabilities, labels = model.class_names, predicted.probabilities, predicted.labels
    if len(places) != len(labels):
        raise ValueError(f"{len(labels)} predictions for {len(places)} images of the {split} split")
    if model.thresholds is not None:
        given = give_labels(probabilities, model.thresholds).astype(np.int64)
        frame = pd.DataFrame(
            {
                "path": places,
                "split": split,
                "label": joined(labels, class_names),
                "predicted": joined(given, class_names),
                "fold": pd.array(folds, dtype="Int64"),
                "probability": np.exp(-log_losses(probabilities, given)),
                "label_probability": np.exp(-log_losses(probabilities, labels)),
            }
        )
        each = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in class_names])
        return pd.concat([frame, each], axis=1)
    names = np.asarray(class_names, dtype=object)
    best = best_answers(probabilities, model.rule)
    rows = np.arange(len(labels))
    columns: dict[str, object] = {
        "path": places,
        "split": split,
        "label": names[labels],
        "predicted": names[best],
        "fold": pd.array(folds, dtype="Int64"),
        "probability": probabilities[rows, best],
        "label_probability": probabilities[rows, labels],
    }
    if len(class_names) <= MOST_CLASSES or model.rule is not None:
        return pd.DataFrame(columns | {f"p_{name}": probabilities[:, place] for place, name in enumerate(class_names)})
    # Stable, so that of equal probabilities the first one is the predicted class.
    order = np.argsort(-probabilities, axis=1, kind="stable")
    for rank in range(TOP):
        columns[f"label_{rank + 1}"] = names[order[:, rank]]
        columns[f"probability_{rank + 1}"] = probabilities[rows, order[:, rank]]
    return pd.DataFrame(columns)
