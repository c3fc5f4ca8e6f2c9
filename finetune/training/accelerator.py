"""Make the accelerator of a training: Accelerate's handle of devices, precision and processes."""

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from finetune.decide.plan import Plan
from finetune.device import best_device
from finetune.errors import RecipeError
from finetune.training.sharding import is_sharding_requested, set_up_sharding

MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""Accelerate's name of each precision."""


def make_accelerator(plan: Plan) -> Accelerator:
    """Return the accelerator for a plan, whatever the precision of earlier trainings in this process.

    Raises:
        RecipeError: there are more processes than images in a batch, or the weights cannot be sharded as requested.
    """
    sharded = is_sharding_requested(plan.precision)
    # With mixed precision, Accelerate gives sharded networks low-precision weights, which batch norms refuse.
    precision = "no" if sharded else MIXED_PRECISION[plan.precision]
    # Accelerate's state belongs to the process and keeps the precision of the first training.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=best_device().type == "cpu", mixed_precision=precision)
    if sharded:
        set_up_sharding(accelerator)
    if plan.batch_size < accelerator.num_processes:
        raise RecipeError(
            f"a batch of {plan.batch_size} images cannot be shared by {accelerator.num_processes} processes; "
            f"give a larger --batch-size"
        )
    return accelerator
