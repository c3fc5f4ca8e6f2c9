"""Networks of which each process holds a part while they are trained (FSDP2, Zhao et al. 2023).

The weights that are trained, their gradients, the optimizer's moments and the moving average are shared out among the
processes, and put together where the network is judged, saved or shipped: on disk nothing tells how many there were.
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


def sharding_asked(precision: Precision) -> bool:
    """Return whether the launcher asks for shards: `accelerate launch --use_fsdp --fsdp_version 2`.

    Raises:
        RecipeError: the first version of FSDP, or an arithmetic that needs its gradients scaled.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError("the weights can be sharded by FSDP2 alone; launch with --fsdp_version 2")
    if precision == "float16":
        raise RecipeError("float16 is not trained with sharded weights; give --set training.precision=float32")
    return True


def set_up_sharding(accelerator: Accelerator) -> None:
    """Let Accelerate shard on CPUs, too, which it leaves whole, but torch does not; and networks with buffers."""
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.is_fsdp2:
        # Handing out one process's weights, which the launcher asks for, fails with batch norms; all have them anyway.
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False


def copy_to_shard(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return what is to be prepared in the place of `module`: itself, or where it is going to be sharded, which can not
    be undone, a copy; the whole one leaves the device meanwhile."""
    if not accelerator.is_fsdp2:
        return module
    own = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # shards know no other layout
    module.cpu()
    return own


def assemble(sharded: nn.Module, whole: nn.Module, device: torch.device) -> None:
    """Put the weights of a sharded module together in the whole one, on `device`; all processes must."""
    if sharded is whole:
        return
    whole.to(device)
    state = whole.state_dict()
    with torch.no_grad():
        for name, tensor in sharded.state_dict().items():
            state[name].copy_(_full(tensor))


@contextmanager
def assembled(sharded: nn.Module, whole: nn.Module, device: torch.device) -> Iterator[None]:
    """Put the weights of a sharded module together in the whole one for a while."""
    assemble(sharded, whole, device)
    yield
    if sharded is not whole:
        whole.cpu()


def without_shards(content: Any) -> Any:  # noqa: ANN401  (dictionaries and lists of tensors and plain values)
    """Return a copy of a checkpoint's content with whole tensors; all processes must."""
    return tree_map(_full, content)


def shard_like(value: Tensor, tensor: Tensor) -> Tensor:
    """Return this process's part of a whole `value`, shared out as `tensor` is; or the value itself."""
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    mesh = tensor.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, tensor.placements, src_data_rank=None)


def shard_moments(optimizer: torch.optim.Optimizer) -> None:
    """Share out what an optimizer has read from a checkpoint as its parameters are."""
    for parameter, state in optimizer.state.items():
        state.update({name: shard_like(value, parameter) for name, value in state.items()})


def _full(value: Any) -> Any:  # noqa: ANN401
    return value.full_tensor() if isinstance(value, DTensor) else value
