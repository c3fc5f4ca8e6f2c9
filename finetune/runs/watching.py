"""Follow a run from another shell, by the files that it writes."""

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.errors import RunFolderError
from finetune.runs.display import Display, describe_state
from finetune.runs.layout import print_text
from finetune.runs.live import is_alive, read_state
from finetune.runs.places import resume_command
from finetune.runs.run_state import RunState
from finetune.value import read_json

POLL_SECONDS = 0.5
"""Time between two looks at the state of a run."""


def watch(folder: Path, console: Console) -> bool:
    """Show the progress of a run until it ends; return whether it has finished with a model.

    Args:
        folder: the run folder.
        console: the console to show it on.

    Raises:
        RunFolderError: there is no run that can be followed.
    """
    state = read_state(folder)
    if state is None:
        raise RunFolderError(
            f"there is no run to follow in {folder}; expected a folder with state.json, which a run writes from its "
            f"first measurement on"
        )
    display = Display(console)
    if not console.is_terminal and is_alive(state):
        print_text(console, escape(describe_state(state)), indent=0)
    display.start()
    try:
        while state is not None and is_alive(state):
            display.show(state)
            time.sleep(POLL_SECONDS)
            state = read_state(folder)
    finally:
        display.stop()
    print_text(console, escape(_describe_end(folder, state)), indent=0)
    return state is not None and state.status == "finished"


def _describe_end(folder: Path, state: RunState | None) -> str:
    """Return how a run ended, and what to do next."""
    again = f"continue it: {resume_command(folder)}"
    if not (folder / "plan.json").exists():
        again = "its choice was not made, so there is nothing to resume"
    if state is None:
        return "the run ended before its training began, and left no folder"
    if state.status == "failed":
        return f"failed in '{state.phase}': {state.error}"
    if state.status == "interrupted":
        return f"interrupted in '{state.phase}', step {state.step} of {state.of}; {again}"
    if state.status == "running":
        return f"process {state.pid} ended without a word in '{state.phase}', step {state.step} of {state.of}; {again}"
    metrics = read_json(folder / "metrics.json", RunFolderError)
    try:
        name = "test" if metrics["test"] else "validation"
        return f"finished: {100 * metrics[name]['top1']:.1f} % of {metrics[name]['num_images']} {name} images right"
    except (KeyError, TypeError, ValueError):
        raise RunFolderError(f"{folder / 'metrics.json'} does not hold the metrics of a run") from None
