"""Compare heads and losses for classes with an order: cross-entropy with heads that know the order.

    python -m experiments.measure_order --data DIR --runs FOLDER
    python -m experiments.measure_order --write

DIR holds the image sets. One has classes with an order: hands that show the digits 0 to 9 (signdigits10). As none has
graded lesions, two sets of five grades are made: places that are blurred (scene15) and waste behind fog (trash6), in
unequal classes, with graders who err: the grade is the severity plus noise with a standard deviation of 0.4, rounded
down. Training images are made of training images alone, and test images of test images alone. FOLDER has them.

The heads differ in what the outputs f_0 .. f_K-1 of the last layer mean, and in the loss:

- `cross-entropy`: softmax; with the toolkit's label smoothing, or without;
- `cumulative loss`: softmax; a binary cross-entropy for each question whether the grade is above k, as CORAL (Cao et
  al. 2020) asks them, with the probability that the softmax gives to the grades above k;
- `both`: softmax; the cross-entropy, and the mean of the cumulative loss over the questions;
- `CORN`: P(grade > k | grade >= k) = sigmoid(f_k) (Shi et al. 2021);
- `cumulative link`: P(grade > k) = sigmoid(f_0 - softplus(f_1) - ... - softplus(f_k)) (after Vargas et al. 2020, with
  thresholds that depend on the image, so that one linear layer suffices);
- `proportional odds`: P(grade > k) = sigmoid(w x - t_k), one direction for all grades (McCullagh 1980); as a probe.

Every head is trained by the same plan, of the strategy `partial`, from the toolkit's linear probe, or from its own
regularised fit on the frozen features where its outputs are not those of a softmax. It is
calibrated by a temperature on the same held-out images. The answer is the grade with the least expected squared
distance. Rows are appended to experiments/results/order.jsonl; those that are in it are not measured again. The second
form writes the table of docs/guides/ordered-labels.md.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.optimize import minimize_scalar
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn

from experiments.calibrate_forecast import features_of
from experiments.measure_recipes import hardware
from experiments.pages import mark_of, write_between
from experiments.paths import ROOT
from experiments.rows import Row, append_row, read_rows
from finetune.data import ImageSplits, Pixels, labels_of, load_images
from finetune.data.splitting import stratified_folds
from finetune.decide.answers import AnswerRule, best_answers, squared_distances
from finetune.decide.plan import Plan
from finetune.network.head import find_head
from finetune.predict.linear_probe import INVERSE_REGULARIZATIONS, LinearHead
from finetune.predict.links import OneClass
from finetune.predict.model import scores_of
from finetune.recipe import Recipe
from finetune.runs.execution import decide, measure_networks
from finetune.training import plan_phases, train, training
from finetune.training.head import start_head
from finetune.training.material import Material
from finetune.training.phases import Phase

RESULTS = ROOT / "experiments" / "results" / "order.jsonl"
"""Rows of the heads."""

GUIDE = ROOT / "docs" / "guides" / "ordered-labels.md"
"""Page with the table."""

NETWORK, SIDE = "tf_efficientnet_lite0", 96
"""Network of all rows, and the side of its images in pixels."""

SEEDS = 2
"""Number of trainings of each head on each set, with other held-out images, orders and crops."""

NUM_TRAINING, NUM_TEST, STEPS = 300, 600, 80
"""Number of images of each set, and of steps of each training."""

SETS = {"blur": "scene15", "fog": "trash6", "digits of hands": "signdigits10"}
"""Image set that each ordered set is, or is made of."""

GRADES, GRADER_ERROR = 5, 0.4
"""Number of grades of a made set, and the standard deviation of its graders' errors, in grades."""

SMALLEST = 1e-12
"""Smallest probability whose logarithm is taken."""


class Head:
    """The meaning of a linear layer's outputs (n, num_classes), and the loss."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probabilities (n, num_classes): here, the softmax."""
        return outputs.softmax(dim=1)

    def losses(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:  # noqa: ARG002
        """Return the loss of each image, (n,): here, the negative log-probability of its grade."""
        own = self.probabilities(outputs).gather(1, labels[:, None])[:, 0]
        return -own.clamp(min=SMALLEST).log()


class CrossEntropy(Head):
    """Softmax, with label smoothing in the training."""

    def losses(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Return the cross-entropy of each image, (n,)."""
        return nn.functional.cross_entropy(outputs, labels, reduction="none", label_smoothing=smoothing)


class CumulativeLoss(Head):
    """Softmax, with a binary cross-entropy for each question whether the grade is above k."""

    def losses(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:  # noqa: ARG002
        """Return the sum over k of the cross-entropies of P(grade > k), (n,)."""
        logs = outputs.log_softmax(dim=1)
        # log P(grade > k) and log P(grade <= k) for k = 0 .. K - 2, by sums over the classes above and up to k.
        above = logs.flip(1).logcumsumexp(dim=1).flip(1)[:, 1:]
        below = logs.logcumsumexp(dim=1)[:, :-1]
        is_above = labels[:, None] > torch.arange(above.shape[1], device=labels.device)
        return -torch.where(is_above, above, below).sum(dim=1)


class Both(CumulativeLoss):
    """Softmax, with the cross-entropy and the mean cross-entropy of the questions."""

    def losses(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Return the sum of both for each image, (n,)."""
        questions = super().losses(outputs, labels, smoothing) / (outputs.shape[1] - 1)
        return questions + nn.functional.cross_entropy(outputs, labels, reduction="none")


class Corn(Head):
    """P(grade > k | grade >= k) = sigmoid(f_k); the last output is not used."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the products of the conditional probabilities, (n, num_classes)."""
        further = nn.functional.logsigmoid(outputs[:, :-1]).cumsum(dim=1)
        ends = nn.functional.logsigmoid(-outputs[:, :-1])
        return torch.cat([ends[:, :1], further[:, :-1] + ends[:, 1:], further[:, -1:]], dim=1).exp()


class CumulativeLink(Head):
    """P(grade > k) = sigmoid(f_0 - softplus(f_1) - ... - softplus(f_k)); the last output is not used."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the differences of neighbouring cumulative probabilities, (n, num_classes)."""
        steps = torch.cat([outputs[:, :1], -nn.functional.softplus(outputs[:, 1:-1])], dim=1)
        above = steps.cumsum(dim=1).sigmoid()
        ends = torch.ones_like(above[:, :1])
        return torch.cat([ends, above], dim=1) - torch.cat([above, 0.0 * ends], dim=1)


HEADS: dict[str, Head] = {
    "cross-entropy": CrossEntropy(),
    "cross-entropy, no smoothing": Head(),
    "cumulative loss": CumulativeLoss(),
    "both": Both(),
    "CORN": Corn(),
    "cumulative link": CumulativeLink(),
}
"""Heads of one linear layer, by name."""

SOFTMAX = [*HEADS][:4]
"""Heads whose outputs are those of a softmax, which start from the toolkit's own linear probe."""

PROPORTIONAL = "proportional odds"
"""Name of the probe with one direction for all grades."""


def make(name: str, data: Path, folder: Path) -> str:
    """Write a set with made grades, unless it is there; return the data, as the recipe names it."""
    source = data / SETS[name]
    if SETS[name] == "signdigits10":
        return str(source)
    for number, (split, count) in enumerate((("train", NUM_TRAINING), ("test", NUM_TEST))):
        draw = np.random.default_rng([number, *name.encode()])
        files = sorted((source / split).glob("*/*"))
        for place in draw.permutation(len(files))[:count].tolist():
            # Mild grades are frequent, as in a screening.
            severity = GRADES * float(draw.random()) ** 1.5
            grade = int(np.clip(np.floor(severity + GRADER_ERROR * draw.standard_normal()), 0, GRADES - 1))
            path = folder / split / str(grade) / f"{files[place].parent.name}-{files[place].stem}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(files[place]) as image:
                    degraded(image.convert("RGB").resize((SIDE, SIDE)), name, severity).save(path)
    return str(folder)


def degraded(image: Image.Image, name: str, severity: float) -> Image.Image:
    """Return an image that is blurred, or behind fog, by a severity from 0 to 5."""
    if name == "blur":
        return image.filter(ImageFilter.GaussianBlur(0.4 * severity))
    return Image.blend(image, Image.new("RGB", image.size, (200, 200, 200)), 0.15 * severity)


def fit_linear(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    head: Head,
    inverse_regularization: float,
) -> LinearHead:
    """Return the linear layer with the least sum of losses + |V|^2 / (2 C) on standardised features, as the toolkit's
    own probe has it (finetune/predict/linear_probe.py)."""
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs, right = torch.from_numpy((features - mean) / scale), torch.from_numpy(labels)
    weight, bias = torch.zeros(num_classes, inputs.shape[1]), torch.zeros(num_classes)

    def objective() -> Tensor:
        return head.losses(inputs @ weight.T + bias, right, 0.0).sum() + (weight**2).sum() / (
            2 * inverse_regularization
        )

    minimise(objective, [weight, bias])
    raw = weight.numpy() / scale
    return LinearHead(weight=raw.astype(np.float32), bias=(bias.numpy() - raw @ mean).astype(np.float32))


def minimise(objective: Callable[[], Tensor], variables: list[Tensor]) -> None:
    """Minimise an objective by its variables, in place, by L-BFGS."""
    for variable in variables:
        variable.requires_grad_(True)
    optimizer = torch.optim.LBFGS(variables, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        torch.autograd.backward(value)
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    for variable in variables:
        variable.requires_grad_(False)


def fit_proportional(
    features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, inverse_regularization: float
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Return the function from features to the probabilities of a proportional-odds regression."""
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs, right = torch.from_numpy((features - mean) / scale), torch.from_numpy(labels)
    # The first threshold, and the logarithms of the distances to the next ones.
    weight, first, gaps = torch.zeros(inputs.shape[1]), torch.zeros(1), torch.zeros(num_classes - 2)

    def probabilities(rows: Tensor) -> Tensor:
        thresholds = torch.cat([first, gaps.exp()]).cumsum(dim=0)
        above = (rows @ weight)[:, None].sub(thresholds).sigmoid()
        ends = torch.ones_like(above[:, :1])
        return torch.cat([ends, above], dim=1) - torch.cat([above, 0.0 * ends], dim=1)

    def objective() -> Tensor:
        own = probabilities(inputs).gather(1, right[:, None])[:, 0]
        return -own.clamp(min=SMALLEST).log().sum() + (weight**2).sum() / (2 * inverse_regularization)

    minimise(objective, [weight, first, gaps])
    return lambda tested: probabilities(torch.from_numpy((tested - mean) / scale)).numpy().astype(np.float64)


Fit = Callable[[NDArray[np.float32], NDArray[np.int64], float], Callable[[NDArray[np.float32]], NDArray[np.float64]]]
"""Function of features, labels and C that returns the function from features to probabilities."""


def fit_of(name: str, num_classes: int) -> Fit:
    """Return the fit of a probe, by its name."""
    if name == PROPORTIONAL:
        return lambda features, labels, strength: fit_proportional(features, labels, num_classes, strength)

    def fit(
        features: NDArray[np.float32], labels: NDArray[np.int64], strength: float
    ) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        linear = fit_linear(features, labels, num_classes, HEADS[name], strength)
        return lambda tested: probabilities_of(HEADS[name], linear.logits(tested))

    return fit


def probabilities_of(head: Head, outputs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities of outputs, both (n, num_classes)."""
    found: NDArray[np.float64] = head.probabilities(torch.from_numpy(np.asarray(outputs, dtype=np.float64))).numpy()
    return found


def log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean negative log-probability of the grades, in nats."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], SMALLEST, None)).mean())


def figures(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Row:
    """Return the figures of probabilities: those of the answers with the least expected squared distance, and the kappa
    of the most probable grades."""
    rule = AnswerRule(costs=squared_distances(probabilities.shape[1]), are_distances=True)
    answers = best_answers(probabilities, rule)
    modes = probabilities.argmax(axis=1)
    return {
        "kappa": round(float(cohen_kappa_score(labels, answers, weights="quadratic")), 4),
        "kappa_of_mode": round(float(cohen_kappa_score(labels, modes, weights="quadratic")), 4),
        "squared": round(float(rule.costs_of(answers, labels).mean()), 4),
        "squared_of_mode": round(float(rule.costs_of(modes, labels).mean()), 4),
        "mae": round(float(np.abs(answers - labels).mean()), 4),
        "accuracy": round(float((modes == labels).mean()), 4),
        "log_loss": round(log_loss(probabilities, labels), 4),
    }


def measure_probe(name: str, features: Sequence[NDArray[np.float32]], labels: Sequence[NDArray[np.int64]]) -> Row:
    """Return the figures of a probe on the test images; C is that of the least cross-validated log-loss.

    Args:
        name: name of the head.
        features: frozen features of the training images and of the test images, each (n, width).
        labels: their grades, each (n,).
    """
    num_classes = int(labels[0].max()) + 1
    fit, folds = fit_of(name, num_classes), stratified_folds(labels[0], 5, 0, None)
    losses = []
    for strength in INVERSE_REGULARIZATIONS:
        held = [(fit(features[0][own], labels[0][own], strength)(features[0][out]), out) for own, out in folds]
        losses.append(float(np.mean([log_loss(found, labels[0][out]) for found, out in held])))
    strength = INVERSE_REGULARIZATIONS[int(np.argmin(losses))]
    return figures(fit(features[0], labels[0], strength)(features[1]), labels[1]) | {"strength": strength}


@contextmanager
def training_with(head: Head, is_softmax: bool) -> Iterator[None]:
    """Let all trainings in a context have another head: its loss, and its own fit on the frozen features as start."""

    def start(material: Material, phase: Phase) -> LinearHead | None:
        if material.features is None:
            raise ValueError("the strategy partial has features")
        rows, strength = phase.indices, material.plan.probe_inverse_regularization
        labels = material.labels
        fitted = fit_linear(material.features.numpy(rows), labels[rows], material.num_classes, head, strength)
        find_head(material.network).load(torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias))
        return fitted

    def losses(
        _self: OneClass, logits: Tensor, labels: Tensor, class_weights: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        return head.losses(logits, labels, smoothing), class_weights[labels]

    with (
        mock.patch.object(OneClass, "train_losses", losses),
        mock.patch.object(training, "start_head", start_head if is_softmax else start),
        mock.patch.object(training, "is_worse", return_value=False),
    ):
        yield


def plan_of(data: str, seed: int) -> tuple[Plan, ImageSplits]:
    """Return the plan of all heads, and the images."""
    recipe = Recipe(
        data=data, model=NETWORK, image_size=SIDE, strategy="partial", limit=NUM_TRAINING, seed=seed, refit=False,
        metric="top1", steps=STEPS,
    )  # fmt: skip
    splits = load_images(data, limit=NUM_TRAINING, seed=seed)
    plan = decide(recipe, measure_networks(recipe, splits))[0].plan
    return plan.changed(validation="held_out", refit=False, refit_steps=0, co_tuning=0.0), splits


def measure(name: str, plan: Plan, splits: ImageSplits) -> Row:
    """Return the figures of a training with a head on the test images."""
    head = HEADS[name]
    started = time.perf_counter()
    with training_with(head, name in SOFTMAX):
        model = train(plan, splits)
    (phase,) = plan_phases(plan, splits)
    parts = []
    for table, rows in ((splits.train, phase.held_out.tolist()), (splits.test, None)):
        pixels = Pixels(table, plan.preprocessing.shorter_side, plan.preprocessing.reading)
        parts.append(scores_of(model.network, pixels, plan, rows))
    held = labels_of(splits.train)[phase.held_out]
    # The temperature of the head's own probabilities, as the toolkit fits that of the softmax.
    found = minimize_scalar(
        lambda log_t: log_loss(probabilities_of(head, parts[0] / np.exp(log_t)), held), bounds=(-2.3, 2.3)
    )
    tested = probabilities_of(head, parts[1] / np.exp(found.x))
    return figures(tested, labels_of(splits.test)) | {"seconds": round(time.perf_counter() - started, 1)}


def missing(rows: Sequence[Row], **keys: object) -> bool:
    """Return whether no row has these values."""
    return not any(all(row[key] == value for key, value in keys.items()) for row in rows)


def measure_all(data: Path, folder: Path) -> None:
    """Measure the rows that are not in the file."""
    rows = read_rows(RESULTS)
    places = {name: make(name, data, folder / name.replace(" ", "-")) for name in SETS}
    for heads in (SOFTMAX, [own for own in HEADS if own not in SOFTMAX]):
        for seed, (name, place) in product(range(SEEDS), places.items()):
            todo = [own for own in heads if missing(rows, set=name, head=own, kind="training", seed=seed)]
            plan = plan_of(place, seed) if todo else ()
            for own in todo:
                append_row(RESULTS, described(name, own, "training", seed) | measure(own, *plan))
    for name, place in places.items():
        todo = [own for own in (*HEADS, PROPORTIONAL) if missing(rows, set=name, head=own, kind="probe")]
        if todo:
            splits = load_images(place, limit=NUM_TRAINING)
            features = [features_of(splits, part) for part in ("train", "test")]
            labels = [labels_of(splits.train), labels_of(splits.test)]
        for own in todo:
            append_row(RESULTS, described(name, own, "probe", 0) | measure_probe(own, features, labels))


def described(name: str, head: str, kind: str, seed: int) -> Row:
    """Return what a row is about."""
    return {"set": name, "date": f"{date.today()}", "kind": kind, "head": head, "seed": seed}


def page(rows: Sequence[Row]) -> str:
    """Return the table of the guide: the means over the seeds, a cell for each set."""
    sets = [name for name in SETS if not missing(rows, set=name)]
    lines = [
        f"`python -m experiments.measure_order --data DIR --runs FOLDER`; {hardware()}, {rows[0]['date']}; "
        f"EfficientNet-Lite0",
        f"at {SIDE} px (probes: 128 px), {NUM_TRAINING} training images, {STEPS} steps of `partial`, up to",
        f"{NUM_TEST} test images.",
        "Each cell, of one seed or means over the seeds: quadratic weighted kappa of the least costly answers / of the",
        "most probable grades / mean absolute error of the least costly answers, in grades / log-loss.",
        "",
        f"| head | {' | '.join(sets)} |",
        f"|---|{'---|' * len(sets)}",
    ]
    for kind, head in product(("training", "probe"), (*HEADS, PROPORTIONAL)):
        cells = [[row for row in rows if (row["kind"], row["head"], row["set"]) == (kind, head, own)] for own in sets]
        if any(cells):
            lines.append(f"| {head}, {kind} | {' | '.join(map(cell_of, cells))} |")
    return "\n".join(lines)


def cell_of(rows: Sequence[Row]) -> str:
    """Return the mean figures of some rows, and their number."""
    if not rows:
        return ""
    means = [float(np.mean([row[key] for row in rows])) for key in ("kappa", "kappa_of_mode", "mae", "log_loss")]
    count = f" ({len(rows)} seeds)" if len(rows) > 1 else ""
    return " / ".join(f"{mean:.3f}" for mean in means) + count


def main() -> None:
    """Measure the heads, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the image sets")
    parser.add_argument("--runs", type=Path, help="folder for the sets that are made")
    parser.add_argument("--write", action="store_true", help="write the table of the guide")
    arguments = parser.parse_args()
    if arguments.data and arguments.runs:
        measure_all(arguments.data, arguments.runs)
    if arguments.write:
        write_between(GUIDE, mark_of("measure_order"), page(read_rows(RESULTS)))


if __name__ == "__main__":
    main()
