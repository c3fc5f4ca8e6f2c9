"""Compare the distance from the nearest training image with that of pytorch-ood, on random features.

    pip install pytorch-ood
    python -m experiments.compare_neighbours [--widths 8 128 1280]

pytorch-ood's distance D is Euclidean, between features of length 1; ours is one less their cosine, D^2 / 2.
"""

import argparse

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from finetune.predict.neighbours import Neighbours

TRAINED, SCORED = 800, 400
"""Number of random images that are known, and that are scored; half of the latter are from elsewhere."""


def compare(width: int) -> tuple[float, float, float]:
    """Return the largest difference of the distances, and both areas under the ROC curve, for features of a width."""
    from pytorch_ood.detector import KNN

    draw = np.random.default_rng(width)
    centre = draw.normal(size=width)
    other = centre + draw.normal(size=width) / width**0.25
    known = (centre + draw.normal(size=(TRAINED, width))).astype(np.float32)
    is_other = np.arange(SCORED) % 2 == 1
    scored = (np.where(is_other[:, None], other, centre) + draw.normal(size=(SCORED, width))).astype(np.float32)
    peer = KNN(encoder=None, k=1).fit_features(torch.from_numpy(known), torch.zeros(TRAINED))
    theirs = peer.predict_features(torch.from_numpy(scored)).numpy().astype(np.float64)
    ours = Neighbours.among(known).distances(scored)
    error = float(np.abs(ours - theirs**2 / 2).max())
    return error, float(roc_auc_score(is_other, ours)), float(roc_auc_score(is_other, theirs))


def main() -> None:
    """Print the comparison for narrow and wide features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 128, 1280], help="numbers of features")
    for width in parser.parse_args().widths:
        error, ours, theirs = compare(width)
        print(f"{width} features: distances within {error:.1e}, area under the ROC curve {ours:.4f} and {theirs:.4f}")


if __name__ == "__main__":
    main()
