"""Find the licence of the pretrained weights that a model started from."""

import timm
from pydantic import Field

from finetune.value import FrozenModel

UNKNOWN = "unknown"
"""The hub's name for a licence that is not known."""


class Base(FrozenModel):
    """Pretrained weights that a training started from."""

    name: str = Field(min_length=1)
    """Description of the weights, such as `timm/resnet18.a1_in1k`."""
    repository: str | None
    """Repository of the weights on the hub; None if they have none, or if there were no pretrained weights."""
    licence: str
    """Identifier of their licence, such as `apache-2.0`, or `unknown`."""


def find_base(network: str, weights: str) -> Base:
    """Return the weights that a network started from.

    timm states a licence for its own weights. It does not know that of another file, and random weights have none.

    Args:
        network: timm's name of the network.
        weights: the plan's weights: `pretrained`, `random` or a file.
    """
    if weights == "random":
        return Base(name="random weights", repository=None, licence=UNKNOWN)
    if weights != "pretrained":
        return Base(name="weights from a file", repository=None, licence=UNKNOWN)
    known = timm.get_pretrained_cfg(network)
    if known is None:
        return Base(name=f"timm's weights of {network}", repository=None, licence=UNKNOWN)
    name = known.hf_hub_id or ".".join(part for part in (known.architecture or network, known.tag) if part)
    return Base(name=name, repository=known.hf_hub_id or None, licence=(known.license or UNKNOWN).lower())
