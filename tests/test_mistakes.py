"""Mistakes in arguments and paths are reported before anything that takes long is imported."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "accelerate", "datasets", "pandas", "sklearn", "scipy", "optuna", "matplotlib")
"""Libraries that take long to import."""

CASES = {
    "train --data nowhere": "there is no folder or file nowhere; give a folder with one subfolder of images",
    "plan --data nowhere": "there is no folder or file nowhere",
    "tune --data nowhere": "there is no folder or file nowhere",
    "evaluate run --data nowhere": "there is no folder or file nowhere",
    "train --data notes.txt": "notes.txt is a file, but not a CSV, TSV or Parquet table",
    "train --data empty": "empty is empty; expected one subfolder of images for each class",
    "train --data demo:cats": "there is no demo 'cats'; the embedded demo is demo:digits",
    "train": "no data was given; say --data PATH",
    "train --data images --set stratgy=full": "unknown key 'stratgy'; did you mean 'strategy'?",
    "train --data images --set training.steps": "--set expects key=value",
    "train --data images --epochs 3 --set epochs=5": "epochs is given twice",
    "train --data images --batch-size 0": "batch_size: input should be greater than or equal to 1",
    "train --data images --time-budget soon": "time_budget: expected a duration like 90s, 10m or 1.5h",
    "train --data images --time-budget 1s": "a time budget of 1 s is too short: 0 s have passed",
    "train --data images --strategy half": "'half' is not one of",
    "train --data images --epochs many": "unable to parse string as a number",
    "train --data images --speed fast": "No such option",
    "train images": "unexpected extra argument",
    "fly --data images": "No such command 'fly'",
    "train --recipe nowhere.yaml": "there is no recipe nowhere.yaml; give the path of a YAML file",
    "train --data images --set weights=nowhere.pt": "there is no weights file nowhere.pt",
    "train --data images --output run": "run holds another run, which is not overwritten",
    "plan --data images --output images": "images is neither empty nor a run folder",
    "tune --data images --output run": "run holds another run, which is not overwritten",
    "train --plan nowhere/plan.json": "there is no file nowhere/plan.json; expected the plan of a run",
    "train --resume nowhere": "there is no run in nowhere; expected a folder with plan.json",
    "train --resume run": "the run in run is finished; there is nothing to resume",
    "train --resume run --seed 1": "--resume trains a saved plan as it is, so --seed cannot be given with it",
    "train --resume search": "search holds an interrupted search; continue it: finetune tune --resume search",
    "tune --resume nowhere": "there is no run in nowhere",
    "tune --resume begun": "begun holds no search for hyper-parameters",
    "predict nowhere images": "there is no run in nowhere",
    "predict begun images": "the run in begun is not finished (metrics.json is missing); continue it",
    "predict run nowhere.jpg": "there is no image or folder nowhere.jpg",
    "predict run images --output notes.txt": "notes.txt exists and is not overwritten",
    "predict run images --top-k 0": "should be greater than or equal to 1",
    "predict run images/*.gif": "no file matches images/*.gif",
    "predict run images --resume": "--resume continues a file, and none is given; name the interrupted one with",
    "predict run images --output begun.csv": "begun.csv.part is the beginning of an interrupted table",
    "embed run images": "Missing option '--output'",
    "embed run images --output features.csv": "features are written as Parquet, and features.csv is not",
    "embed runs/nowhere images --output f.parquet": "there is no run in runs/nowhere",
    "embed model.onnx images --output f.parquet": "model.onnx is an exported model, which has no features",
    "embed run nowhere.jpg --output f.parquet": "there is no image or folder nowhere.jpg",
    "evaluate nowhere --data images": "there is no run in nowhere",
    "audit nowhere": "there is no folder or file nowhere; give a folder",
    "audit images --clean notes.txt": "notes.txt exists and is not overwritten; give another --clean",
    "audit images --clean kept.parquet": "--clean writes a CSV table, and kept.parquet does not end with .csv",
    "audit images --output notes.txt": "notes.txt is a file, not a folder; give another --output",
    "diagnose nowhere": "there is no run in nowhere",
    "serve nowhere": "there is no run in nowhere",
    "serve begun": "the run in begun is not finished (metrics.json is missing)",
    "serve nowhere.onnx": "there is no file nowhere.onnx; expected one that 'finetune export' wrote",
    "serve run --port 70000": "should be less than or equal to 65535",
    "serve run --host 192.0.2.1": "port 8000 of 192.0.2.1 cannot be used",
}
"""Commands with one mistake each, and a part of the sentence that they end with."""

PROGRAM = """
import contextlib, io, json, sys
from finetune.cli import main

found = {}
for command in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(command.split())
        except SystemExit as ended:
            status = ended.code
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    found[command] = status, " ".join(said.getvalue().replace("│", " ").split()), heavy
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return the exit status, the printed sentence and the heavy modules imported so far, by command."""
    place = tmp_path_factory.mktemp("mistakes")
    for folder in ("images/a", "images/b", "empty"):
        (place / folder).mkdir(parents=True)
    for folder, names in (
        ("run", ("plan.json", "config.json", "metrics.json")),
        ("begun", ("plan.json", "history.jsonl")),
        ("search", ("plan.json", "tuning.json")),
    ):
        (place / folder).mkdir()
        for name in names:
            (place / folder / name).write_text("{}")
    for name in ("notes.txt", "begun.csv.part"):
        (place / name).write_text("")
    arguments = [json.dumps([*CASES]), json.dumps(HEAVY)]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=place, capture_output=True, text=True, check=True
    )
    return json.loads(ended.stdout)


@pytest.mark.parametrize("command", CASES)
def test_a_mistake_is_reported_in_a_sentence_before_anything_heavy_is_imported(outcomes, command):
    status, said, heavy = outcomes[command]
    assert CASES[command] in said
    assert status == 2
    assert heavy == []
