"""Compile the module of a training, so that its steps take fewer and larger kernels."""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import nn

from finetune.decide.plan import Plan


def compiled(module: nn.Module) -> nn.Module:
    """Return a module with the same parameters whose forward and backward passes are compiled at their first use."""
    return cast("nn.Module", torch.compile(module))


def compiles_what_it_can(plan: Plan) -> AbstractContextManager[object]:
    """Return the context of the steps of a plan: what cannot be compiled on this machine (without a compiler, or with
    an operation that PyTorch does not know) is computed as if nothing were compiled."""
    if not plan.compiled:
        return nullcontext()
    found: AbstractContextManager[object] = torch._dynamo.config.patch(suppress_errors=True)
    return found
