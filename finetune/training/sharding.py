"""Shard networks over processes while they are trained (FSDP2, Zhao et al. 2023).

Each process holds a part of every trained weight, of its gradient, of the optimizer's moments and of the moving
average. An operation gathers the weights that it needs, and their gradients are summed up and split again. The whole
weights are assembled where the network is evaluated or saved, so that files do not depend on the number of processes.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from finetune.errors import RecipeError
from finetune.recipe import Precision


def is_sharding_requested(precision: Precision) -> bool:
    """Return whether the launcher requests shards: `accelerate launch --use_fsdp --fsdp_version 2`.

    Raises:
        RecipeError: the launcher requests the first version of FSDP, or the gradients of the precision must be scaled.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError("the weights can be sharded by FSDP2 alone; launch with --fsdp_version 2")
    if precision == "float16":
        raise RecipeError("float16 is not trained with sharded weights; give --set training.precision=float32")
    return True


def set_up_sharding(accelerator: Accelerator) -> None:
    """Let Accelerate also shard networks on CPUs, and networks with buffers."""
    # Accelerate does not shard on CPUs, though torch can.
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.is_fsdp2:
        # The launcher's default sends one process's weights to the others, which fails with batch norms. It is not
        # needed: all processes have the same weights.
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False


def copy_to_shard(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return the module to prepare: `module` itself, or a copy of it if it will be sharded, which cannot be undone.

    The whole module leaves the device while its copy is trained.
    """
    if not accelerator.is_fsdp2:
        return module
    own = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # FSDP2 shards contiguous tensors alone
    module.cpu()
    return own


def assemble(sharded: nn.Module, whole: nn.Module, device: torch.device) -> None:
    """Copy the weights of a sharded module into the whole one, on `device`; all processes must call this."""
    if sharded is whole:
        return
    whole.to(device)
    state = whole.state_dict()
    with torch.no_grad():
        for name, tensor in sharded.state_dict().items():
            state[name].copy_(_full(tensor))


@contextmanager
def assembled(sharded: nn.Module, whole: nn.Module, device: torch.device) -> Iterator[None]:
    """Return a context inside which the whole module has the weights of the sharded one, on `device`."""
    assemble(sharded, whole, device)
    yield
    if sharded is not whole:
        whole.cpu()


def without_shards(content: Any) -> Any:  # noqa: ANN401  (dictionaries and lists of tensors and plain values)
    """Return a copy of `content` with whole tensors instead of shards; all processes must call this."""
    return tree_map(_full, content)


def shard_like(value: Tensor, tensor: Tensor) -> Tensor:
    """Return this process's part of a whole `value`, sharded as `tensor` is; or the value itself if it is not."""
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    mesh = tensor.device_mesh
    # Every process has the whole value, from the same file: none has to send its parts (src_data_rank=None).
    return distribute_tensor(value.to(mesh.device_type), mesh, tensor.placements, src_data_rank=None)


def shard_moments(optimizer: torch.optim.Optimizer) -> None:
    """Shard the moments that an optimizer has read from a checkpoint as its parameters are."""
    for parameter, state in optimizer.state.items():
        # The number of steps has another shape than the parameter, and stays whole.
        state.update({name: shard_like(value, parameter) for name, value in state.items()})


def _full(value: Any) -> Any:  # noqa: ANN401
    return value.full_tensor() if isinstance(value, DTensor) else value
