"""Pictures of a plan."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.decide.plan import Plan, plan_of_refit
from finetune.decide.schedule import learning_rate_factor


def plot_schedule(plan: Plan, path: Path) -> None:
    """Draw the learning rate of every trained stage and of the head at every step, and that of the refit behind it.

    Args:
        plan: whose trainings are drawn; one without steps gives an empty picture.
        path: of the picture; its ending (svg, png, pdf) says which kind.
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    _draw(axes, plan, 0, is_first=True)
    if plan.refit and plan.steps:
        _draw(axes, plan_of_refit(plan), plan.steps, is_first=False)
        axes.axvline(plan.steps, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate("refit", (plan.steps, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -10),
                      textcoords="offset points", fontsize="small", color="grey")  # fmt: skip
    axes.set(xlabel="step", ylabel="learning rate", title=f"{plan.strategy}, {plan.schedule}")
    axes.set_ylim(bottom=0.0)
    if plan.steps:
        axes.legend(fontsize="small", frameon=False)
    figure.savefig(path)


def _draw(axes: Axes, plan: Plan, offset: int, is_first: bool) -> None:
    factors = [learning_rate_factor(step, plan.steps, plan.warmup_steps, plan.schedule) for step in range(plan.steps)]
    trained = [(stage.name, stage.learning_rate) for stage in plan.stages if stage.learning_rate > 0]
    for number, (name, rate) in enumerate([*trained, ("head", plan.head_learning_rate)]):
        axes.plot(
            range(offset, offset + plan.steps),
            [rate * factor for factor in factors],
            color=f"C{number % 10}",
            label=name if is_first else None,
        )
