"""Refit and check the constants of the domain similarity on labelled image sets.

    python -m experiments.calibrate_similarity --data DIR [--cache experiments/results/similarity_parts.json]
        [--write finetune/measure/similarity.py]

DIR holds the sets of `DOMAINS` as NAME/train/CLASS/IMAGE. All networks share the weights; the mean and spread of each
part are those of a network. The parts of each set are measured once and saved in the cache file.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

from experiments.paths import RESULTS
from experiments.similarity_sets import DOMAINS, DRAWS, Table, measure_all
from finetune.measure.similarity import CLIP, Calibration, PartScale

NETWORKS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
"""Networks to calibrate, by timm's names."""

OWN_PARTS = ("late_vigour", "middle_vigour", "energy")
"""Parts for a network with constants of its own."""

GENERIC_PARTS = (("late_vigour", "middle_vigour"), ("logit_skewness",))
"""Parts for other networks: with batch-norm layers, and without."""

TARGETS = {"near": 0.95, "medium": 0.5, "far": 0.05}
"""Similarity that the regression aims at, by distance."""

MEDIUM_WEIGHT = 0.25
"""Weight of a set of medium distance, against 1 for a near or a far one."""

NARROW_WEIGHT = 0.5
"""Weight of a set's subsets of two or three classes, against 1 for the whole set: narrow sets must score like broad
ones."""

RIDGE = 0.1
"""Ridge penalty on the weights."""

LIMIT = 400
"""Number of images of a set that are measured."""


def scales(tables: Iterable[Table], sets: Iterable[str], part: str) -> tuple[float, float]:
    """Return the mean and the standard deviation of a part over the near and the far sets."""
    clear = [key for key in sets if DOMAINS[key] != "medium"]
    values = np.array([table[key].full[part] for table in tables for key in clear])
    return float(values.mean()), float(values.std())


def fit(tables: Mapping[str, Table], part_names: Sequence[str], sets: Sequence[str]) -> dict[str, Calibration]:
    """Return the constants of each network by name, and the pooled constants under "", fitted to `sets`.

    The model is a logistic regression on soft targets (`TARGETS`) with a ridge penalty; all networks share its weights.
    """
    standards = {name: {part: scales([table], sets, part) for part in part_names} for name, table in tables.items()}
    rows, targets, masses = [], [], []
    for name, table in tables.items():
        for key in sets:
            mass = (MEDIUM_WEIGHT if DOMAINS[key] == "medium" else 1) / len(tables)
            weighted = [(table[key].full, mass)]
            weighted += [(parts, mass * NARROW_WEIGHT / DRAWS) for parts in table[key].narrow]
            for parts, weight in weighted:
                row = [(parts[part] - mean) / spread for part, (mean, spread) in standards[name].items()]
                rows.append([*row, 1.0])
                targets.append(TARGETS[DOMAINS[key]])
                masses.append(weight)
    inputs = np.clip(np.array(rows), -CLIP, CLIP)
    weights = _fit_logistic(inputs, np.array(targets), np.array(masses))
    standards[""] = {part: scales(tables.values(), sets, part) for part in part_names}
    return {
        name: Calibration(
            intercept=round(float(weights[-1]), 3),
            parts={
                part: PartScale(round(mean, 4), round(spread, 4), round(float(weight), 3))
                for (part, (mean, spread)), weight in zip(standard.items(), weights[:-1], strict=True)
            },
        )
        for name, standard in standards.items()
    }


def _fit_logistic(
    inputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any], masses: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the weights (n_parts + 1,), the intercept last, that minimise the penalised cross-entropy."""

    # Loss sum_i m_i (log(1 + exp(z_i)) - t_i z_i) + RIDGE |w|^2, without the intercept; gradient
    # X' (m (sigmoid(z) - t)) + 2 RIDGE w.
    def loss(weights: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        logits = inputs @ weights
        shrunk = np.append(weights[:-1], 0.0)
        value = masses @ (np.logaddexp(0, logits) - targets * logits) + RIDGE * shrunk @ shrunk
        return float(value), inputs.T @ (masses * (1 / (1 + np.exp(-logits)) - targets)) + 2 * RIDGE * shrunk

    return np.asarray(minimize(loss, np.zeros(inputs.shape[1]), jac=True).x)


def evaluate(tables: Mapping[str, Table], part_names: Sequence[str], network: str, key: str) -> dict[str, Any]:
    """Return measures of how well the score of a network separates near from far sets that are left out of the fit.

    Args:
        tables: measurements by network.
        part_names: parts of the similarity to use.
        network: the network whose score is evaluated.
        key: constants to evaluate: the network's own (its name), or "" for the pooled ones, fitted without the network.
    """
    others = tables if key else {name: table for name, table in tables.items() if name != network} or tables
    table, sets = tables[network], list(DOMAINS)
    held = {left: fit(others, part_names, [name for name in sets if name != left])[key] for left in sets}
    held_out = {name: held[name].score(table[name].full) for name in sets}
    final = fit(others, part_names, sets)[key]
    scores = {name: final.score(entry.full) for name, entry in table.items()}
    near, far = ([name for name in sets if DOMAINS[name] == domain] for domain in ("near", "far"))
    gap = float(np.mean([scores[name] for name in near]) - np.mean([scores[name] for name in far]))
    held_gap = np.mean([held_out[name] for name in near]) - np.mean([held_out[name] for name in far])
    margin = min(held_out[name] for name in near) - max(held_out[name] for name in far)
    clear = [name for name in sets if DOMAINS[name] != "medium"]
    is_near = [DOMAINS[name] == "near" for name in clear]
    narrow = [(DOMAINS[name] == "near", final.score(parts)) for name in clear for parts in table[name].narrow]
    shifts = {
        kind: {name: max(abs(final.score(p) - scores[name]) / gap for p in getattr(table[name], kind)) for name in sets}
        for kind in ("half", "imbalanced")
    }
    mean_shift = {
        kind: float(np.mean([abs(final.score(p) - scores[n]) / gap for n in sets for p in getattr(table[n], kind)]))
        for kind in shifts
    }
    return {
        "auc": float(roc_auc_score(is_near, [held_out[name] for name in clear])),
        "held_out_margin_of_gap": float(margin / held_gap),
        "gap": gap,
        "narrow_auc": float(roc_auc_score([truth for truth, _ in narrow], [score for _, score in narrow])),
        "max_shift": {kind: max(values.values()) for kind, values in shifts.items()},
        "mean_shift": mean_shift,
        "shift": shifts,
        "held_out": held_out,
        "scores": scores,
    }


def print_evaluation(name: str, result: Mapping[str, Any]) -> None:
    """Print one network's result."""
    shift, mean = result["max_shift"], result["mean_shift"]
    print(
        f"\n{name}: held-out AUC {result['auc']:.3f}, margin {result['held_out_margin_of_gap']:.2f} of the gap, "
        f"gap {result['gap']:.2f}, AUC of 2-3-class subsets {result['narrow_auc']:.3f}"
    )
    print(
        f"shift as a share of the gap: half max {shift['half']:.3f} mean {mean['half']:.3f}; "
        f"imbalanced max {shift['imbalanced']:.3f} mean {mean['imbalanced']:.3f}"
    )
    for key, score in result["scores"].items():
        held = f"{result['held_out'][key]:.2f}" if key in DOMAINS else "    "
        moved = "".join(f"  {kind} {result['shift'][kind][key]:.2f}" for kind in shift) if key in DOMAINS else ""
        print(f"  {key:20}{DOMAINS.get(key, 'sanity'):8} score {score:.2f}  held out {held}{moved}")


def as_source(calibrations: Mapping[str, Calibration], generic: Sequence[Calibration]) -> str:
    """Return the constants as the Python source between the two marks of similarity.py."""

    def one(calibration: Calibration, indent: str) -> str:
        lines = [f"Calibration(\n{indent}    intercept={calibration.intercept},\n{indent}    parts={{\n"]
        for part, scale in calibration.parts.items():
            values = f"mean={scale.mean}, spread={scale.spread}, weight={scale.weight}"
            lines.append(f'{indent}        "{part}": PartScale({values}),\n')
        return "".join([*lines, f"{indent}    }},\n{indent})"])

    own = "".join(f'        "{name}": {one(value, " " * 8)},\n' for name, value in calibrations.items())
    rest = "".join(f"    {one(value, ' ' * 4)},\n" for value in generic)
    return (
        f"CALIBRATIONS: Mapping[str, Calibration] = MappingProxyType(\n    {{\n{own}    }}\n)\n"
        f'"""Constants of the networks that were calibrated."""\n\n'
        f"GENERIC: tuple[Calibration, ...] = (\n{rest})\n"
        f'"""Constants for other networks, with batch-norm layers or without; the first whose parts are measured."""\n'
    )


def write_source(path: Path, source: str) -> None:
    """Write the source of the constants between the two marks of a similarity.py."""
    begin, end = "# CONSTANTS BEGIN: written by experiments/calibrate_similarity.py\n", "# CONSTANTS END"
    text = path.read_text()
    head, tail = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    path.write_text(head + source + tail)


def main() -> None:
    """Measure, fit, evaluate and write the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--cache", type=Path, default=RESULTS / "similarity_parts.json", help="file of measurements")
    parser.add_argument("--out", type=Path, default=RESULTS / "similarity_constants.json", help="file of the constants")
    parser.add_argument("--write", type=Path, help="a similarity.py whose constants are replaced")
    parser.add_argument("--limit", type=int, default=LIMIT, help="number of images of a set that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tables = measure_all(arguments.data, arguments.networks, arguments.cache, arguments.limit, arguments.seed)
    sets = list(DOMAINS)
    fitted = fit(tables, OWN_PARTS, sets)
    own = {name: fitted[name] for name in tables}
    generic = [fit(tables, parts, sets)[""] for parts in GENERIC_PARTS]
    results: dict[str, Any] = {}
    for name in tables:
        results[name] = evaluate(tables, OWN_PARTS, name, name)
        for parts in GENERIC_PARTS:
            results[f"{name} as an unknown network, {'+'.join(parts)}"] = evaluate(tables, parts, name, "")
    for name, result in results.items():
        print_evaluation(name, result)
    constants = {"networks": {k: asdict(v) for k, v in own.items()}, "generic": [asdict(v) for v in generic]}
    arguments.out.write_text(json.dumps({**constants, "evaluation": results}, indent=1))
    source = as_source(own, generic)
    print("\n" + source)
    if arguments.write:
        write_source(arguments.write, source)


if __name__ == "__main__":
    main()
