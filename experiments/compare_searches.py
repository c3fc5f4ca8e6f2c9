"""Compare grid search, random search and TPE (the tree-structured Parzen estimator) at equal budgets.

    python -m experiments.compare_searches --data DIR [--output experiments/results/searches.jsonl]

The program trains a table of learning rates and weight decays with two seeds (the rate matters most), and replays
searches on it: the proposals are those of `finetune tune`, and losses between the table's points are interpolated.
Rows that are already in the output file are not trained again, so an interrupted run continues.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState, create_trial

from experiments.paths import RESULTS
from experiments.rows import Row, append_row, read_rows
from finetune.data import ImageSplits, labels_of, load_images, stratified_subset
from finetune.decide.choice import choose_strategy
from finetune.decide.planning import make_plan
from finetune.measure import measure_evidence
from finetune.predict.links import log_loss
from finetune.predict.model import fit_temperature
from finetune.recipe import Recipe, load_recipe
from finetune.recipe_tuning import Search
from finetune.training import Checkpoints, HeldOutPredictions, begin, evaluate_at, finish
from finetune.tuning.space import Dimension, Parameters, Space, plan_of_trial, refine
from finetune.tuning.state import Trial, Tuning, best_of
from finetune.tuning.trials import RUNGS, Proposer

RATES = tuple(5e-5 * 2**power for power in range(8))
"""Learning rates of the table."""

DECAYS = (1e-3, 0.3)
"""Weight decays of the table."""

USUAL_DECAY = 0.02
"""Weight decay of a plan without a search."""

SEEDS = (0, 1)
"""Seeds of the table's trainings."""

NUM_TRAINED = 200
"""Number of training images."""

NUM_HELD_OUT = 300
"""Number of held-out images."""

CENTRES = (1e-4, 3.2e-3)
"""Lowest and highest centre of the searched ranges. The centres vary, because the position of the best rate in its
range is unknown beforehand. Beyond the table its ends are used, where the loss is that of the probe or of a constant
prediction."""

FACTOR = 8.0
"""Ratio of the highest learning rate of a range to its centre, as in `finetune tune`."""

SEARCHES: tuple[Search, ...] = get_args(Search)
"""Searches to compare: all that `finetune tune` offers."""

BUDGETS = (4, 9, 16, 25)
"""Numbers of trainings of a search."""

REPLAYS = 200
"""Number of replays of each search on each seed's table."""

Loss = Callable[[Parameters], float]
"""Function that returns a loss in nats from the parameters."""


def recipe_of(data: str, seed: int) -> Recipe:
    """Return the recipe of the table's trainings, which train the last stages for a few seconds."""
    return load_recipe(data=data, strategy="partial", image_size=64, steps=30, refit=False, seed=seed)


def splits_of(recipe: Recipe) -> ImageSplits:
    """Return a small set: training images and held-out images, both from the training split."""
    splits = load_images(recipe.data, recipe.columns, recipe.limit, recipe.seed)
    trained = stratified_subset(labels_of(splits.train), NUM_TRAINED, recipe.seed)
    others = np.setdiff1d(np.arange(len(splits.train)), trained)
    held_out = np.random.default_rng(recipe.seed).permutation(others)[:NUM_HELD_OUT]
    return replace(splits, train=splits.train.select(trained), validation=splits.train.select(np.sort(held_out)))


def measure(data: str, output: Path) -> list[Row]:
    """Train the points that the table lacks; return its rows."""
    rows = read_rows(output)
    done = {(row["seed"], row["learning_rate"], row["weight_decay"]) for row in rows}
    for seed in SEEDS:
        open_rows = [(rate, decay) for rate in RATES for decay in DECAYS if (seed, rate, decay) not in done]
        if not open_rows:
            continue
        recipe = recipe_of(data, seed)
        splits = splits_of(recipe)
        evidence = measure_evidence(recipe, splits)
        choice = choose_strategy(evidence, recipe)
        for rate, decay in open_rows:
            parameters = {"learning_rate": rate, "weight_decay": decay}
            plan = plan_of_trial(recipe, evidence, choice, parameters)
            with TemporaryDirectory() as folder:
                state, predictions = begin(plan, splits, checkpoints=Checkpoints(Path(folder))), []
                for share in (*RUNGS, 1.0):
                    state, found = evaluate_at(state, share)
                    predictions.append(found)
                state, model = finish(state)
            losses = [_calibrated_loss(found) for found in predictions]
            row = {"seed": seed, **parameters, "losses": losses, "top1": float(np.mean(_right(predictions[-1])))}
            if splits.test is not None:
                answers = model.probabilities(splits.test)
                row["test_loss"] = float(
                    -np.log(answers[np.arange(len(answers)), labels_of(splits.test)] + 1e-12).mean()
                )
            row["seconds"] = round(state.seconds, 2)
            row["usual_rate"] = make_plan(recipe, evidence, choice).head_learning_rate
            rows.append(row)
            append_row(output, row)
            print(json.dumps(row), flush=True)
    return rows


def _calibrated_loss(found: HeldOutPredictions) -> float:
    """Return the log-loss in nats at the best temperature."""
    return log_loss(found.logits / fit_temperature(found.logits, found.labels), found.labels)


def _right(found: HeldOutPredictions) -> NDArray[np.bool_]:
    """Return whether each held-out image (n_images,) is classified correctly."""
    right: NDArray[np.bool_] = found.logits.argmax(axis=1) == found.labels
    return right


def surface(rows: Sequence[Row], seed: int, value: Callable[[Row], float]) -> Loss:
    """Return a function that interpolates a seed's table linearly, in the logarithms of rate and decay."""
    table = {(row["learning_rate"], row["weight_decay"]): value(row) for row in rows if row["seed"] == seed}
    curves = [[table[rate, decay] for rate in RATES] for decay in DECAYS]

    def loss(parameters: Parameters) -> float:
        ends = [np.interp(np.log(parameters["learning_rate"]), np.log(RATES), curve) for curve in curves]
        share = np.log(parameters["weight_decay"] / DECAYS[0]) / np.log(DECAYS[1] / DECAYS[0])
        return float((1 - share) * ends[0] + share * ends[1])

    return loss


def space_at(centre: float) -> Space:
    """Return the ranges to search around a central learning rate."""
    rate = Dimension(name="learning_rate", low=centre / FACTOR, high=centre * FACTOR)
    return rate, Dimension(name="weight_decay", low=DECAYS[0], high=DECAYS[1])


def tried(proposer: Proposer, loss: Loss, number: int) -> list[tuple[Parameters, float]]:
    """Return the first `number` proposals of a search, and their losses."""
    found: list[tuple[Parameters, float]] = []
    before: list[FrozenTrial] = []
    for place in range(min(number, proposer.num_trials)):
        parameters = proposer.propose(place, before)
        found.append((parameters, loss(parameters)))
        before.append(
            create_trial(
                state=TrialState.COMPLETE,
                params=parameters,
                distributions=proposer.distributions(),
                value=found[-1][1],
            )
        )
    return found


def single_search(search: Search, space: Space, budget: int, seed: int, loss: Loss) -> Parameters:
    """Return the best parameters of a search with complete trainings."""
    proposer = Proposer(search=search, space=space, count=budget, seed=seed)
    return min(tried(proposer, loss, budget), key=lambda each: each[1])[0]


class Surface(NamedTuple):
    """The losses of a seed as functions of the parameters."""

    rungs: tuple[Loss, ...]
    """Held-out losses after a third and after two thirds of the steps."""
    late: Loss
    """Held-out loss after all steps."""
    test: Loss
    """Test loss after all steps."""


def coarse_to_fine(search: Search, trials: int, rung: int, space: Space, seed: int, each: Surface) -> Parameters:
    """Return the best parameters of a coarse search up to a rung, followed by a fine search with complete trainings.

    No trial is stopped early.
    """
    tuning = Tuning(name="", worker="", search=search, num_trials=trials, asked=space, space=space)
    coarse = tuple(
        Trial(
            number=number,
            stage="coarse",
            parameters=parameters,
            state="finished",
            losses=(loss,),
            accuracy=0.0,
            seconds=0.0,
        )
        for number, (parameters, loss) in enumerate(
            tried(
                Proposer(search=search, space=space, count=tuning.num_coarse, seed=seed),
                each.rungs[rung],
                tuning.num_coarse,
            )
        )
    )
    best = best_of(coarse).parameters
    proposer = Proposer(
        search=search, space=refine(space, best), count=tuning.num_fine, seed=seed, first=best, shorter=coarse
    )
    return min(tried(proposer, each.late, tuning.num_fine), key=lambda found: found[1])[0]


def _loss_at(rung: int, row: Row) -> float:
    return float(row["losses"][rung])


def report(rows: Sequence[Row]) -> None:
    """Print the table of losses, and how far the loss of each search is above the best, over all seeds and ranges."""
    surfaces = [
        Surface(
            rungs=tuple(surface(rows, seed, partial(_loss_at, rung)) for rung in range(len(RUNGS))),
            late=surface(rows, seed, partial(_loss_at, len(RUNGS))),
            test=surface(rows, seed, lambda row: float(row["test_loss"])),
        )
        for seed in SEEDS
    ]
    print("| learning rate |", " | ".join(f"{rate:.1e}" for rate in RATES), "|")
    for decay in DECAYS:
        points = [{"learning_rate": rate, "weight_decay": decay} for rate in RATES]
        for rung, name in enumerate(("a third of the steps", "two thirds", "all")):
            means = [np.mean([(*each.rungs, each.late)[rung](point) for each in surfaces]) for point in points]
            print(f"| after {name}, decay {decay:g} |", " | ".join(f"{mean:.3f}" for mean in means), "|")
    print("\n| search | trainings | held-out loss above the best, nats | test loss above the best, nats |")
    print("|---|---|---|---|")
    usual = {"learning_rate": float(rows[0]["usual_rate"]), "weight_decay": USUAL_DECAY}
    _print_row("none: the plan's own values", "1", surfaces, lambda *_: usual)
    for budget in BUDGETS:
        for search in SEARCHES:
            _print_row(search, str(budget), surfaces, partial(_whole, search, budget))
    for rung, name in enumerate(("12 thirds and 8", "12 two thirds and 8")):
        for search in SEARCHES:
            _print_row(f"{search}, coarse to fine", name, surfaces, partial(coarse_to_fine, search, 20, rung))
    print(f"\n{len(rows)} trainings of {np.mean([row['seconds'] for row in rows]):.1f} s")


def _whole(search: Search, budget: int, space: Space, number: int, each: Surface) -> Parameters:
    return single_search(search, space, budget, number, each.late)


def _print_row(
    name: str, trainings: str, surfaces: Sequence[Surface], search: Callable[[Space, int, Surface], Parameters]
) -> None:
    """Print the mean loss above the best, its standard error, and the loss that one replay in twenty exceeds."""
    grid = [
        {"learning_rate": float(rate), "weight_decay": decay}
        for rate in np.geomspace(RATES[0], RATES[-1], 161)
        for decay in DECAYS
    ]
    low, high = np.log(CENTRES)
    centres = np.exp(np.random.default_rng(0).uniform(low, high, size=REPLAYS))
    held, test = [], []
    for each in surfaces:
        best, best_test = (min(map(loss, grid)) for loss in (each.late, each.test))
        for number, centre in enumerate(centres):
            found = search(space_at(float(centre)), number, each)
            held.append(each.late(found) - best)
            test.append(each.test(found) - best_test)
    figures = [
        f"{np.mean(left):.4f} ± {np.std(left) / len(left) ** 0.5:.4f}, one in twenty more than "
        f"{np.quantile(left, 0.95):.3f}"
        for left in (held, test)
    ]
    print(f"| {name} | {trainings} | {' | '.join(figures)} |", flush=True)


def main() -> None:
    """Train the table, then report the searches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a class-per-folder tree with a test split")
    parser.add_argument("--output", type=Path, default=RESULTS / "searches.jsonl", help="file of the table's rows")
    options = parser.parse_args()
    report(measure(options.data, options.output))


if __name__ == "__main__":
    main()
