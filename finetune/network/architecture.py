"""Tell the kinds of networks apart by their layers, because learning rates depend on them."""

import re

from torch import nn

from finetune.decide.families import Architecture
from finetune.network.head import find_head

ATTENTION = re.compile(r"attention|attn|mhsa|xca", re.IGNORECASE)
"""Part of the class names of self-attention layers in timm."""

PROJECTIONS = ("qkv", "q", "query", "q_proj", "qs", "to_q", "queries_keys_values")
"""Names of the projection inside a self-attention layer; attention over channels, such as squeeze-and-excitation, has
none."""

POOLING = ("head", "attn_pool", "global_pool", "fc_norm")
"""Modules above the last stage, whose attention only pools."""

MANY_CONVOLUTIONS = 8
"""Number of spatial convolutions from which a network with attention has convolutional stages; patch embeddings and
stems have up to 5."""


def architecture_of(network: nn.Module) -> Architecture:
    """Return the kind of the network's layers below its head."""
    owned = find_head(network).owns
    modules = [(name, module) for name, module in network.named_modules() if not owned(name + ".")]
    attends = any(
        ATTENTION.search(type(module).__name__)
        and any(hasattr(module, projection) for projection in PROJECTIONS)
        and not name.startswith(POOLING)
        for name, module in modules
    )
    if attends:
        kernels = [max(module.kernel_size) for _, module in modules if isinstance(module, nn.Conv2d)]
        return "hybrid" if sum(side > 1 for side in kernels) >= MANY_CONVOLUTIONS else "vit"
    batch = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for _, module in modules)
    layer = sum("norm" in type(module).__name__.lower() for _, module in modules) - batch
    return "cnn" if batch >= layer else "layer_norm_cnn"
