"""Plot the learning rates of a plan."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.decide.plan import Plan, plan_of_refit
from finetune.decide.schedule import learning_rate_factor
from finetune.files import replacing


def plot_schedule(plan: Plan, path: Path) -> None:
    """Plot the learning rates of the trained stages and of the head at every step, followed by those of the refit.

    Args:
        plan: the plan; without steps its plot is empty.
        path: the file to write; its ending (svg, png, pdf) selects the format.
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    _draw_rates(axes, plan, 0, is_first=True)
    if plan.refit and plan.steps:
        _draw_rates(axes, plan_of_refit(plan), plan.steps, is_first=False)
        axes.axvline(plan.steps, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate("refit", (plan.steps, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -10),
                      textcoords="offset points", fontsize="small", color="grey")  # fmt: skip
    axes.set(xlabel="step", ylabel="learning rate", title=f"{plan.strategy}, {plan.schedule}")
    axes.set_ylim(bottom=0.0)
    if plan.steps:
        axes.legend(fontsize="small", frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))


def _draw_rates(axes: Axes, plan: Plan, offset: int, is_first: bool) -> None:
    """Plot the rates of one training, whose first step is at `offset`; only the first training labels its lines."""
    factors = [learning_rate_factor(step, plan.steps, plan.warmup_steps, plan.schedule) for step in range(plan.steps)]
    trained = [(stage.name, stage.learning_rate) for stage in plan.stages if stage.learning_rate > 0]
    for number, (name, rate) in enumerate([*trained, ("head", plan.head_learning_rate)]):
        axes.plot(
            range(offset, offset + plan.steps),
            [rate * factor for factor in factors],
            color=f"C{number % 10}",
            label=name if is_first else None,
        )
