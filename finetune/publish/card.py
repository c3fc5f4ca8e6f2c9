"""Write the model card: metrics with intervals, intended use, data, choice and licence of a published model."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from finetune.decide.planned_run import PlannedRun
from finetune.predict.metrics import Metrics, describe_not_evaluated
from finetune.publish.licence import UNKNOWN, Base
from finetune.runs.folder import RunMetrics

MOST_NAMED = 100
"""Largest number of classes that a card names."""

CARD = """---
{header}
---

# {name}

An image classifier of {num_classes} classes: timm's `{network}`, trained by finetune from {base}.

## How good it is

{results}

| class | images | recall | precision |
|---|---|---|---|
{per_class}

For {num_images} {source}. "Recall" is the share of a class's images that are recognised; "precision" is the share of
right ones among the images that are given this class.{remarks}

## Intended use

For images like those of the training: the same kind of subject, camera and background. The model names one of its
classes for every image, also for one that shows none of them. Its probabilities are calibrated on images of the same
source; on others they may be too high or too low. Evaluate it on your own labelled images before you rely on it, above
all if they come from other places, devices or people. It was not tested for decisions about persons.

## How to use it

```python
{example}
```

Or copy the repository into a folder, and run `finetune predict FOLDER IMAGES`.{flips}

## Data

{data}

## Training

{training}

## Licence

{licence}
"""
"""The card, in Markdown."""

EXAMPLE = """import timm
import torch
from PIL import Image

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    logits = model(transform(Image.open("image.jpg").convert("RGB"))[None])
probabilities = (logits / {temperature:.4f}).softmax(-1)[0]  # this temperature calibrates the probabilities
print(model.pretrained_cfg["label_names"][probabilities.argmax()], probabilities.max().item())"""
"""Example of the card, which needs only timm."""

EXAMPLE_OF_CHANNELS = """import timm
import torch

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
# In place of an image: its {channels} channels, scaled as `reading` in config.json says and then from 0 to 1, resized.
pixels = torch.rand(1, *config["input_size"])
with torch.no_grad():
    logits = model((pixels - mean) / std)
probabilities = (logits / {temperature:.4f}).softmax(-1)[0]  # this temperature calibrates the probabilities
print(model.pretrained_cfg["label_names"][probabilities.argmax()], probabilities.max().item())"""
"""Example of the card of a model of other channels than red, green and blue; `reading` in `config.json` says which
channels are read, and which of their values become 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A run, as its card describes it."""

    repository: str
    """Name on the hub, `user/name`."""
    run: PlannedRun
    """Recipe, evidence, choice and plan."""
    metrics: RunMetrics
    """Quality of the model."""
    base: Base
    """Weights that the training started from."""
    counts: Mapping[str, int]
    """Number of images in each split."""
    temperature: float
    """Divisor of the logits."""

    @property
    def name(self) -> str:
        """Name of the repository, without that of its owner."""
        return self.repository.rpartition("/")[2]

    @property
    def best_known(self) -> tuple[Metrics, str]:
        """Metrics of the test split, or of the held-out images if there is no test split, and what they are."""
        if self.metrics.test is not None:
            return self.metrics.test, "test images"
        return self.metrics.validation, "held-out images"


def write_card(described: Described) -> str:
    """Return the model card of a run."""
    run, plan = described.run, described.run.plan
    best, source = described.best_known
    rows = [
        f"| {_escaped(own.name)} | {own.num_images} | {_percent(own.recall)} | {_percent(own.precision)} |"
        for own in best.per_class
    ]
    flips = (
        "The figures above average each image and its mirrored copy, as `finetune predict` does; this example does not."
    )
    return CARD.format(
        header=_header(described),
        name=described.name,
        num_classes=run.evidence.num_classes,
        network=plan.model,
        base=described.base.name,
        results=_results(described.metrics),
        per_class="\n".join(rows),
        source=source,
        num_images=best.num_images,
        remarks=_remarks(described),
        example=(EXAMPLE if plan.preprocessing.reading.is_rgb else EXAMPLE_OF_CHANNELS).format(
            repository=described.repository,
            temperature=described.temperature,
            channels=plan.preprocessing.num_channels,
        ),
        flips=f" {flips}" if plan.test_time_flips else "",
        data=_data(described),
        training=_training(run),
        licence=_licence(described.base),
    )


def public_name(data: str) -> str:
    """Return the name of a data set without the folders of this machine.

    >>> public_name("/home/me/secret/flowers/"), public_name("hf:user/flowers")
    ('flowers', 'hf:user/flowers')
    """
    kind, colon, rest = data.rpartition(":")
    is_public = (
        kind in {"hf", "stream", "demo"} and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest) and not Path(rest).exists()
    )
    return data if colon and is_public else Path(rest).name or rest


def _header(described: Described) -> str:
    """Return the values that the hub reads, as YAML."""
    best, source = described.best_known
    data = public_name(described.run.recipe.data)
    result = EvalResult(
        task_type="image-classification",
        dataset_type=data,
        dataset_name=f"{data} ({source})",
        metric_type="accuracy",
        metric_value=round(best.top1, 4),
    )
    header = ModelCardData(
        model_name=described.name,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "finetune"],
        license=described.base.licence,
        base_model=described.base.repository,
        metrics=["accuracy"],
        eval_results=[result],
    )
    return str(header.to_yaml())


def _results(metrics: RunMetrics) -> str:
    """Return the table of the metrics, with the intervals of the accuracies."""
    rows = ["| images | accuracy | 95 % interval | balanced accuracy | log-loss | calibration error |"]
    rows.append("|---|---|---|---|---|---|")
    measured = [("test", metrics.test), (f"held out ({metrics.validation_source})", metrics.validation)]
    for name, own in measured:
        if own is not None:
            low, high = own.top1_interval
            rows.append(
                f"| {name}, {own.num_images} | {_percent(own.top1)} | {_percent(low)} to {_percent(high)} | "
                f"{_percent(own.balanced_accuracy)} | {own.log_loss:.3f} | {own.calibration_error:.3f} |"
            )
    honest = (
        "No choice used the test images."
        if metrics.test is not None
        else "There is no test split. The training did not see the held-out images, but choices were made by them, so "
        "that these figures may be a little too good."
    )
    return "\n".join([*rows, "", honest])


def _remarks(described: Described) -> str:
    """Return what else must be known about the figures: groups, and a rejected training."""
    remarks = []
    groups = described.run.evidence.groups
    if groups is not None and groups.random_accuracy - groups.grouped_accuracy > groups.error:
        remarks.append(
            f"Images of one group ({_escaped(groups.description)}) are similar: a linear probe is "
            f"right for {_percent(groups.random_accuracy)} of images of known groups and for "
            f"{_percent(groups.grouped_accuracy)} of those of unseen ones. The held-out images are of "
            f"{'unseen' if groups.used else 'known'} groups."
        )
    measured = described.metrics.validation if described.metrics.test is None else described.metrics.test
    if unknown := describe_not_evaluated(
        measured, "held-out image" if described.metrics.test is None else "test image"
    ):
        remarks.append(f"{_escaped(unknown)}.")
    if described.metrics.note:
        remarks.append(f"Remark on the training: {_escaped(described.metrics.note)}.")
    return "".join(f"\n\n{remark}" for remark in remarks)


def _data(described: Described) -> str:
    """Return sentences about the images."""
    evidence = described.run.evidence
    counts = ", ".join(f"{count} {name}" for name, count in described.counts.items() if count)
    each = [f"{_escaped(name)} ({count})" for name, count in evidence.class_counts.items()]
    more = f" and {len(each) - MOST_NAMED:,} more" if len(each) > MOST_NAMED else ""
    classes = ", ".join(each[:MOST_NAMED]) + more
    lines = [
        f"`{public_name(described.run.recipe.data)}`: {counts or evidence.num_images} images, with a shorter side of "
        f"{evidence.native_shorter_side} px (median). The training images of each class: {classes}.",
        f"Domain similarity: {evidence.domain_similarity:.2f} (1: like the pretraining images"
        f"{'' if evidence.similarity_calibrated else '; uncalibrated for this network'}).",
    ]
    if evidence.imbalance > 2:
        lines.append(f"The largest class has {evidence.imbalance:.1f} times the images of the smallest one.")
    if evidence.num_unreadable:
        lines.append(f"{evidence.num_unreadable} files could not be read and were left out.")
    return "\n".join(lines)


def _training(run: PlannedRun) -> str:
    """Return what was chosen, and the reasons."""
    plan = run.plan
    side = plan.preprocessing.image_size
    lines = [f"Chosen: {_escaped(run.choice.chosen.label)}."]
    lines += [f"- {_escaped(reason)}" for reason in run.choice.reasons]
    steps = f"{plan.steps} steps of {plan.batch_size} images" if plan.steps else "a linear head on frozen features"
    lines += ["", f"Images of {side} x {side} px, {steps}, seed {plan.seed}. `plan.json` has every number."]
    return "\n".join(lines)


def _licence(base: Base) -> str:
    """Return what is known about licences."""
    if base.licence == UNKNOWN:
        known = f"The licence of the pretrained weights ({base.name}) is not known."
    else:
        known = f"The pretrained weights ({base.name}) have the licence `{base.licence}`, by timm's record."
    return f"{known} The licence of the training images is not recorded; their terms may apply to this model, too."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _escaped(text: str) -> str:
    """Return a text that stands in a line or a cell of Markdown as it is."""
    plain = " ".join(html.escape(text, quote=False).split())
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", plain)
