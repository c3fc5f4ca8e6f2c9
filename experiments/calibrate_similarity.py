"""Refit and check the constants of the domain similarity on labelled image sets.

    python -m experiments.calibrate_similarity --data DIR [--cache parts.json] [--write finetune/similarity.py]

DIR holds the sets of `DOMAINS` as NAME/train/CLASS/IMAGE. The weights are shared by all networks; the mean and spread
of each part belong to a network. The parts of each set are measured once and kept in the cache file.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import minimize
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score

# This script's folder comes first on the path, where finetune.py stands in for the package.
from finetune.measure.domain import DomainProbe, Moments
from finetune.measure.similarity import CLIP, Calibration, PartScale
from finetune.network.weights import create_pretrained

DOMAINS = {
    "flowers12": "near",
    "scene15": "near",
    "clothing10": "near",
    "cifar10": "near",
    "pacs_cartoon7": "medium",
    "signdigits10": "medium",
    "magtile5": "medium",
    "ucmerced21": "far",
    "brainmri3": "far",
    "fashion10": "far",
    "wbc4": "far",
}
NETWORKS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
OWN_PARTS = ("late_vigour", "middle_vigour", "energy")
GENERIC_PARTS = (("late_vigour", "middle_vigour"), ("logit_skewness",))
TARGETS = {"near": 0.95, "medium": 0.5, "far": 0.05}
MEDIUM_WEIGHT = 0.25
NARROW_WEIGHT = 0.5
"""Weight of a set's subsets of two or three classes, against 1 for the set: narrow sets must score like broad ones."""
RIDGE = 0.1
SIZE = 128
LIMIT = 400
FOLDS = 10
DRAWS = 6

Parts = Mapping[str, float]
Picture = tuple[Image.Image, int]


@dataclass(frozen=True)
class Measured:
    """The parts of one set, and of random reductions of it."""

    full: Parts
    half: Sequence[Parts]
    """Half of the images."""
    imbalanced: Sequence[Parts]
    """Half of the classes reduced to 20 %."""
    narrow: Sequence[Parts]
    """Two or three of the classes."""


Table = dict[str, Measured]
Model = Callable[[str, Parts], float]


# ------------------------------------------------------------ images


def balanced_subset(folder: Path, limit: int, seed: int) -> list[tuple[Path, int]]:
    """Return at most `limit` images of a folder of class folders, the classes as equal as they can be."""
    generator = random.Random(seed)
    queues = [sorted(path for path in child.iterdir()) for child in sorted(folder.iterdir()) if child.is_dir()]
    for queue in queues:
        generator.shuffle(queue)
    rounds = range(max(map(len, queues)))
    return [(queue[turn], label) for turn in rounds for label, queue in enumerate(queues) if turn < len(queue)][:limit]


def crop_centre(image: Image.Image) -> Image.Image:
    """Return the central square with the shorter side resized (also enlarged) to `SIZE`."""
    image = image.convert("RGB")
    scale = SIZE / min(image.size)
    width, height = (max(SIZE, round(side * scale)) for side in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIZE, top + SIZE))


def read_set(folder: Path, change: Callable[[Image.Image], Image.Image], limit: int, seed: int) -> Iterator[Picture]:
    """Yield the prepared images of a set's class-balanced subset."""
    for path, label in balanced_subset(folder / "train", limit, seed):
        with Image.open(path) as image:
            yield crop_centre(change(image.convert("RGB"))), label


def digit_pictures() -> Iterator[Picture]:
    """Yield scikit-learn's 8 x 8 digits: far."""
    digits = load_digits()
    for values, label in zip(digits.images[:300], digits.target[:300], strict=True):
        yield crop_centre(Image.fromarray((values * 15.9).astype(np.uint8))), int(label)


def photo_pictures(seed: int) -> Iterator[Picture]:
    """Yield crops of scikit-learn's two photographs: near, though narrow."""
    generator = random.Random(seed)
    for label, values in enumerate(load_sample_images().images):
        image = Image.fromarray(values)
        for _ in range(30):
            side = int(min(image.size) * generator.uniform(0.6, 1))
            left, top = generator.randint(0, image.width - side), generator.randint(0, image.height - side)
            yield crop_centre(image.crop((left, top, left + side, top + side))), label


def grey(image: Image.Image) -> Image.Image:
    """Return the image without its colours."""
    return image.convert("L")


def quarter(image: Image.Image) -> Image.Image:
    """Return the image at a quarter of the resolution the network sees."""
    return crop_centre(image).resize((SIZE // 4, SIZE // 4), Image.Resampling.BICUBIC)


def sanity_sets(data: Path, limit: int, seed: int) -> dict[str, tuple[str, Iterator[Picture]]]:
    """Return the sets that are only checked, never fitted: name to domain and images."""
    sets: dict[str, tuple[str, Iterator[Picture]]] = {
        "digits 8x8": ("far", digit_pictures()),
        "2 photographs": ("near", photo_pictures(seed)),
    }
    for name in ("flowers12", "clothing10"):
        for change in (grey, quarter):
            sets[f"{name} {change.__name__}"] = ("near", read_set(data / name, change, limit, seed))
    return sets


# ------------------------------------------------------------ measurement


def load_network(name: str) -> torch.nn.Module:
    """Return the frozen pretrained network with its original head."""
    network, _ = create_pretrained(name, None)
    return network.eval()


def batches(network: torch.nn.Module, pictures: Iterable[Picture]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches as the network wants them."""
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    mean, deviation = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    listed = list(pictures)
    for start in range(0, len(listed), 50):
        part = listed[start : start + 50]
        values = torch.from_numpy(np.stack([np.asarray(image) for image, _ in part])).permute(0, 3, 1, 2).float() / 255
        yield (values - mean) / deviation, torch.tensor([label for _, label in part])


def measure(network: torch.nn.Module, pictures: Iterable[Picture], seed: int) -> Measured:
    """Return the parts of a set and of its reductions, from one pass.

    The moments are collected for each fold of each class: reductions are sums over some of these cells.
    """
    probe = DomainProbe(network)
    seen: dict[int, int] = {}
    for images, labels in batches(network, pictures):
        cells = []
        for label in labels.tolist():
            seen[label] = seen.get(label, -1) + 1
            cells.append(label * FOLDS + seen[label] % FOLDS)
        probe.add(images, torch.tensor(cells))
    labels_seen = sorted(seen)
    generator = random.Random(seed)
    everything = range(FOLDS)

    def reduced(folds: Mapping[int, Iterable[int]]) -> Parts:
        chosen = [[probe.groups.get(label * FOLDS + fold) for fold in kept] for label, kept in folds.items()]
        return probe.parts([total for cells in chosen if (total := _sum_moments(cells)) is not None])

    half, imbalanced, narrow = [], [], []
    for _ in range(DRAWS):
        half.append(reduced({label: generator.sample(everything, FOLDS // 2) for label in labels_seen}))
        small = set(generator.sample(labels_seen, len(labels_seen) // 2))
        fifth = FOLDS // 5
        imbalanced.append(
            reduced({label: generator.sample(everything, fifth if label in small else FOLDS) for label in labels_seen})
        )
        few = generator.sample(labels_seen, min(len(labels_seen), generator.choice((2, 3))))
        narrow.append(reduced(dict.fromkeys(few, everything)))
    return Measured(reduced(dict.fromkeys(labels_seen, everything)), half, imbalanced, narrow)


def _sum_moments(cells: Iterable[Moments | None]) -> Moments | None:
    total: Moments | None = None
    for cell in cells:
        if cell is not None:
            total = cell if total is None else total + cell
    return total


def measure_all(data: Path, names: Sequence[str], cache: Path, limit: int, seed: int) -> dict[str, Table]:
    """Return the measurements of all sets with all networks, from the cache where it has them."""
    stored = json.loads(cache.read_text()) if cache.exists() else {}
    for name in names:
        network = load_network(name)
        table = stored.setdefault(name, {})
        sources = {key: read_set(data / key, lambda image: image, limit, seed) for key in DOMAINS}
        sources |= {key: pictures for key, (_, pictures) in sanity_sets(data, limit, seed).items()}
        for key, pictures in sources.items():
            if key not in table:
                table[key] = asdict(measure(network, pictures, seed))
                cache.write_text(json.dumps(stored))
                print(f"measured {key} with {name}", flush=True)
    return {name: {key: Measured(**entry) for key, entry in stored[name].items()} for name in names}


# ------------------------------------------------------------ fit


def scales(tables: Iterable[Table], sets: Iterable[str], part: str) -> tuple[float, float]:
    """Return mean and deviation of a part over the near and far sets."""
    clear = [key for key in sets if DOMAINS[key] != "medium"]
    values = np.array([table[key].full[part] for table in tables for key in clear])
    return float(values.mean()), float(values.std())


def fit(tables: Mapping[str, Table], part_names: Sequence[str], sets: Sequence[str]) -> dict[str, Calibration]:
    """Return the constants of each network, and pooled ones under "", fitted on `sets`.

    It is a logistic regression on soft targets with a ridge on the weights, which all networks share.
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
    def loss(weights: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        logits = inputs @ weights
        shrunk = np.append(weights[:-1], 0.0)
        value = masses @ (np.logaddexp(0, logits) - targets * logits) + RIDGE * shrunk @ shrunk
        return float(value), inputs.T @ (masses * (1 / (1 + np.exp(-logits)) - targets)) + 2 * RIDGE * shrunk

    return np.asarray(minimize(loss, np.zeros(inputs.shape[1]), jac=True).x)


# ------------------------------------------------------------ evaluation


def evaluate(tables: Mapping[str, Table], part_names: Sequence[str], network: str, key: str) -> dict[str, Any]:
    """Return how well the score of `network` tells near from far when each set is left out of the fit.

    `key` names the constants to judge: the network's own, or "" for the pooled ones, then fitted without the network.
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
    """Return the constants as the Python source that `similarity.py` holds between its two marks."""

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
        f'"""The constants of the networks that were calibrated."""\n\n'
        f"GENERIC: tuple[Calibration, ...] = (\n{rest})\n"
        f'"""For other networks, the first whose parts were measured: with batch-norm layers, without."""\n'
    )


def write_source(path: Path, source: str) -> None:
    """Put the constants between the marks of `similarity.py`."""
    begin, end = "# CONSTANTS BEGIN: written by experiments/calibrate_similarity.py\n", "# CONSTANTS END"
    text = path.read_text()
    head, tail = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    path.write_text(head + source + tail)


def main() -> None:
    """Measure, fit, evaluate and write the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--cache", type=Path, default=Path("parts.json"))
    parser.add_argument("--out", type=Path, default=Path("constants.json"))
    parser.add_argument("--write", type=Path, help="a similarity.py whose constants to replace")
    parser.add_argument("--limit", type=int, default=LIMIT, help="images of a set")
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
