"""Know the families of pretrained networks, and the learning rates that each of them stands."""

from typing import Literal, NamedTuple

Architecture = Literal["cnn", "layer_norm_cnn", "vit", "hybrid"]
"""Kind of a network's layers. `cnn`: convolutions with batch norms; `layer_norm_cnn`: convolutions or multilayer
perceptrons with layer norms; `vit`: self-attention; `hybrid`: self-attention and convolutional stages."""

Family = Literal["cnn", "layer_norm_cnn", "supervised_vit", "hybrid", "self_supervised_vit", "clip"]
"""Architecture and pretraining of a network, as far as they matter for learning rates. Batch norms make a network stand
high rates however it was pretrained, so `cnn` includes self-supervised ones."""

SAFE_FRACTION = 0.5
"""Largest default rate as a fraction of the rate at which the loss begins to rise (`finetune.measure.rates`): half of
it is within a factor of two of the tuned rates of three networks (docs/explanation/networks.md)."""


class FamilyRates(NamedTuple):
    """Learning rates of a family, relative to those of convolutional networks with batch norms."""

    factor: float
    """Factor on the rates of `full` and `partial`."""
    lowest_fraction: float | None
    """Rate of the lowest stage as a fraction of the last stage's if all stages are trained (layer-wise decay); None: it
    follows from the domain similarity."""
    source: str
    """Source of the numbers."""


RATES: dict[Family, FamilyRates] = {
    "cnn": FamilyRates(1.0, None, "the grid of docs/explanation/decisions.md"),
    "layer_norm_cnn": FamilyRates(0.25, 0.1, "ConvNeXt's fine-tuning: 5e-5, decay .8 a layer (Liu et al. 2022)"),
    "hybrid": FamilyRates(0.25, 0.1, "AutoGluon's default for CaFormer: 1e-4, decay .9 a layer"),
    "supervised_vit": FamilyRates(0.125, 0.05, "BEiT's fine-tuning after labels: 5e-5, decay .75 a block (Bao 2022)"),
    "self_supervised_vit": FamilyRates(0.04, 0.03, "DINOv2: 1e-6 to 1e-5; MAE: decay .65 to .75 (He et al. 2022)"),
    "clip": FamilyRates(0.04, 0.05, "CLIP: 1e-5 to 3e-5 (Wortsman et al. 2022; Goyal et al. 2023)"),
}
"""Rates by family, with their sources. All but the first are published values, not measured here."""

CLIP_TAGS = ("clip", "openai", "laion", "datacomp", "dfn", "webli", "siglip", "yfcc", "pali", "merged2b", "metaclip")
"""Parts of timm's tags, and of names of networks, that mean pretraining on images with captions."""

SELF_SUPERVISED_TAGS = (
    "dino", "lvd", "mae", "ijepa", "mim_", "seer", "aim", "eupe", "sat493m", "sapiens", "apple_pt", "fb_ssl", "sa1b",
)  # fmt: skip
"""Parts of timm's tags, and of names of networks, that mean pretraining without labels."""

LABEL_TAGS = ("ft_in", "in1k", "in12k", "in21k", "in22k")
"""Parts of timm's tags that mean training on labels, which comes last if it is one of several."""


def family_of(architecture: Architecture, name: str, tag: str, has_head: bool) -> Family:
    """Return the family of a network.

    Args:
        architecture: kind of its layers.
        name: timm's name of the network, without a tag.
        tag: timm's tag of the weights, such as `in12k_ft_in1k`; empty if it is not known.
        has_head: whether the weights include a pretrained classifier.

    >>> family_of("vit", "vit_small_patch14_dinov2", "lvd142m", has_head=False)
    'self_supervised_vit'
    >>> family_of("vit", "vit_base_patch16_clip_224", "openai_ft_in1k", has_head=True)
    'supervised_vit'
    """
    has_labels = has_head and any(part in tag for part in LABEL_TAGS)
    if not has_labels and any(part in text for part in CLIP_TAGS for text in (tag, name)):
        return "clip"
    if architecture == "cnn":
        return "cnn"
    if not has_head or (not has_labels and any(part in text for part in SELF_SUPERVISED_TAGS for text in (tag, name))):
        return "self_supervised_vit"
    return "supervised_vit" if architecture == "vit" else architecture
