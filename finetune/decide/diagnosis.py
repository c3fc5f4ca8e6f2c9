"""Diagnose a training: return verdicts on its settings, with the numbers behind them and the changes to make."""

from collections.abc import Sequence

from finetune.decide.curve import Curve
from finetune.decide.evidence import Evidence
from finetune.decide.learning_rules import early_decay, growing_gap, no_gap, noisy_validation, still_improving
from finetune.decide.plan import Plan
from finetune.decide.step_rules import blown_up, diverged, flat_start, update_ratio
from finetune.decide.verdict import KINDS, Kind, Verdict
from finetune.history import Row

__all__ = ["KINDS", "Kind", "Verdict", "describe_checks", "diagnose"]

SHORTEST_CURVE = 20
"""Fewest steps of a curve that is diagnosed. The rules compare tenths of a curve, and tenths of a shorter one would be
single batches."""


def diagnose(history: Sequence[Row], plan: Plan, evidence: Evidence) -> tuple[Verdict, ...]:
    """Return the verdicts on the history of a plan's trainings, causes before symptoms; none if all is well or the plan
    takes no steps.

    Args:
        history: the rows of `TrainedModel.history` or of a run's history.jsonl. Of several trainings, only the first is
            read as a curve: the one that is evaluated, or the first fold.
        plan: the plan that was carried out; each member of an ensemble has its own.
        evidence: the measurements of the same images.
    """
    if not history:
        return ()
    ended = [row for row in history if "diverged_in" in row]
    if ended:
        return (diverged(ended[-1], history, plan),)
    curve = Curve(history, plan, evidence)
    if len(curve) < SHORTEST_CURVE:
        return _present(noisy_validation(curve))
    lost = blown_up(curve)
    # Wrong steps explain everything that follows them, so the other rules have nothing to add.
    broken = _present(lost, None if lost else flat_start(curve), update_ratio(curve))
    if broken:
        return broken
    learning = _present(early_decay(curve), still_improving(curve), growing_gap(curve))
    return (*learning, *_present(None if learning else no_gap(curve), noisy_validation(curve)))


def describe_checks(history: Sequence[Row]) -> str:
    """Return a human-readable summary of the history that the verdicts are based on."""
    if not history:
        return "nothing was trained step by step, so there is no curve"
    names = list(dict.fromkeys(str(row["phase"]) for row in history))
    evaluations = [row for row in history if "validation_loss" in row]
    stages = list(dict.fromkeys(key.partition(":")[2] for row in history for key in row if ":" in key))
    parts = [f"{len(history)} steps of {', '.join(names)}"]
    if evaluations:
        last = evaluations[-1]
        images = f" on {last['validation_images']} held-out images" if "validation_images" in last else ""
        parts.append(f"{len(evaluations)} evaluations{images}")
    if stages:
        parts.append(f"update-to-weight ratios of {', '.join(stages)}")
    return "; ".join(parts)


def _present(*verdicts: Verdict | None) -> tuple[Verdict, ...]:
    return tuple(verdict for verdict in verdicts if verdict is not None)
