"""Run the training loop."""

import torch
from accelerate import Accelerator
from torch import nn

from finetune.decide.plan import Plan
from finetune.interruption import deferred, is_requested
from finetune.network.cpu import ThreadTeam
from finetune.training.compiling import compiles_what_it_can
from finetune.training.gradients import BatchGradients, count_parallel_parts
from finetune.training.loop_state import LoopState
from finetune.training.monitor import Monitor
from finetune.training.optimizer import set_learning_rates
from finetune.training.pace import Pace
from finetune.training.sharding import without_shards
from finetune.training.task import Batches, Reached, Task


def train_steps(task: Task, plan: Plan, accelerator: Accelerator) -> Reached:
    """Train `task.module` in place for the plan's steps, and leave it with its best, its averaged or its last weights.

    A resumed training ends with the same weights as an uninterrupted one. So does a training that paused: until it
    resumes, the module has the weights that it would have if the plan ended there, and the checkpoint has the weights
    from before the averaging. The training ends before its last step when the held-out loss has not fallen for the
    plan's patience, and in fewer steps when time runs out.

    Args:
        task: the module, its images, and the functions that the loop calls.
        plan: the plan of the steps.
        accelerator: Accelerate's handle of devices, precision and processes.

    Raises:
        DivergenceError: the loss or a gradient is not a finite number; the error names the step and the layer.
    """
    state = LoopState(task, plan, accelerator)
    trained, optimizer, average = state.trained, state.optimizer, state.average
    monitor = Monitor(task, plan, accelerator, state)
    pace = Pace(task, plan)
    batches = Batches(task.make_loader(range(pace.step, pace.end)), plan, pace.step)
    # Of several processes, each may learn of it at another step, and a checkpoint needs all of them.
    alone = accelerator.num_processes == 1
    parts = count_parallel_parts(state.own, plan, accelerator)
    with deferred(alone), compiles_what_it_can(plan), ThreadTeam(parts, plan.num_threads) as team:
        gradients = BatchGradients(task, plan, accelerator, state.module, batches, team)
        # The compiler fuses batch norms itself, and does not see the convolutions that folding replaces.
        if not pace.is_over and not state.is_sharded and not plan.compiled:
            gradients.fold_norms()
        while not pace.is_over:
            if is_requested():
                # The process was asked to end, and the steps so far are not lost.
                state.save(pace.step, pace.position)
                raise KeyboardInterrupt
            set_learning_rates(optimizer, plan, pace.position)
            # Dropout and drop-path draw from a seed of the step, so that a resumed training draws the same numbers.
            torch.manual_seed(plan.noise_seed * 1_000_003 + pace.step * 1_009 + accelerator.process_index)
            loss = gradients.compute()
            # With float16, loss and gradients are scaled up against underflow (Micikevicius et al. 2018).
            accelerator.unscale_gradients()
            # g <- g * min(1, c / ||g||), with c the plan's norm (Pascanu et al. 2013); returns ||g|| from before.
            norm = float(without_shards(nn.utils.clip_grad_norm_(trained, plan.clip_norm)))
            monitor.check_finite(pace.step, loss, norm, batches)
            monitor.before_step(pace.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # The scaler skips a step whose float16 gradients overflowed.
            if not accelerator.optimizer_step_was_skipped:
                average.update()
            batches.finish_reading()
            monitor.after_step(pace, loss, norm)
            pace.advance()
            if pace.checkpoint_is_due():
                state.save(pace.step, pace.position)
            task.on_step(plan.steps if pace.has_ended else pace.step)
    state.finish()
    return Reached(pace.step, pace.has_ended)
