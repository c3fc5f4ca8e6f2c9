import io

from rich.console import Console

from finetune.runs.report import Report
from finetune.tuning.report import print_trials
from finetune.tuning.space import Dimension
from finetune.tuning.state import Trial, Tuning


def test_the_table_of_trials_lists_the_best_one_last_and_marks_the_winner():
    report = Report(Console(file=io.StringIO(), width=200), verbose=True)
    space = (Dimension(name="learning_rate", low=1e-4, high=1e-2),)
    known = {"stage": "fine", "accuracy": 0.9, "seconds": 2.0}
    trials = (
        Trial(number=2, parameters={"learning_rate": 2e-3}, state="finished", losses=(0.5, 0.4, 0.31), **known),
        Trial(number=3, parameters={"learning_rate": 9e-3}, state="pruned", losses=(0.9, 0.8), **known),
    )
    print_trials(
        report,
        Tuning(name="a", worker="b", search="tpe", num_trials=2, asked=space, space=space, trials=trials, winner=2),
    )
    rows = [line.split() for line in report.console.file.getvalue().splitlines()[-2:]]
    assert rows == [
        ["3", "fine", "0.009", "0.800", "90.0", "%", "2", "s", "pruned"],
        ["2", "fine", "0.002", "0.310", "90.0", "%", "2", "s", "winner"],
    ]
