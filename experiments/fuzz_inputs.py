"""Damage run folders, tables, recipes and plans at random, read them, and count what does not end with one sentence.

    python -m experiments.fuzz_inputs [--trials 2000] [--seed 0] [--kinds folders tables recipes plans]

Every damaged input has to be read, or refused with a FinetuneError. A traceback of another kind, more than 20 seconds
of CPU, a process that dies, and probabilities that are not finite count as faults; each is printed with the number of
its trial, which `--only NUMBER` repeats. The trials run in copies of this process, so that one that dies ends no other.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune.checks import check_plan
from finetune.data import DataIdentity, load_images
from finetune.decide.diagnosis import diagnose
from finetune.decide.plan import Plan
from finetune.errors import FinetuneError
from finetune.recipe import load_recipe
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import read_predictions
from finetune.runs.live import read_state
from finetune.runs.pipeline import run

SECONDS = 20
"""Longest time that a trial may take, in seconds of CPU: on a busy machine others wait much longer."""

BATCH = 50
"""Number of trials in one copy of the process."""

VALUES: tuple[Any, ...] = (
    float("nan"), float("inf"), -float("inf"), -1, 0, 1, 1e308, 10**400, True, None, "", "x", "x" * 100_000, [], {},
    [[]], {"a": 1}, "\x1b[31m[red]\udce9", "../../etc/passwd", "=cmd", [1] * 1000, "1e-3",
)  # fmt: skip
"""Values that no key, or hardly any, expects."""

DEEP = ("[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500)
"""Texts that are nested more deeply than a parser follows."""

ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)), "data: *a39"])
"""Aliases that stand for 10^12 texts."""

YAML_TEXTS = (
    ALIASES,
    ALIASES.replace("[x, x]", "{k: x}").replace("[", "{p: ").replace(", ", ", q: ").replace("]", "}"),
    "a: &a [*a]\ndata: *a",
    "data: !!python/object/apply:os.system ['true']",
    "data: 2026-13-45",
    "? [a, b]\n: c",
    "1: 2\nnull: 3\n[a]: 4",
    "<<: {data: x}\ndata: y",
    "data: " + "1" * 10_000,
    "- data",
    "---\ndata: a\n---\ndata: b",
    "\ttab: x",
    "data: \"\\ud800\"",
    "&a : b",
)  # fmt: skip
"""Recipes of other kinds than keys and values."""


class HangError(BaseException):
    """A trial takes too long."""


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return content that is cut, flipped, overwritten, repeated or replaced somewhere."""
    if not content:
        return draw.randbytes(8)
    at, length = draw.randrange(len(content)), draw.choice((1, 4, 64, 4096))
    kind = draw.randrange(8)
    if kind == 0:
        return content[:at]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 8))):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == 2:
        return content[:at] + bytes(length) + content[at + length :]
    if kind == 3:
        return content[:at] + draw.randbytes(length) + content[at:]
    if kind == 4:
        return content[:at] + content[at : at + length] * 3 + content[at + length :]
    if kind == 5:
        return content[at:]
    if kind == 6:
        return content.decode("utf-8", "replace").encode(draw.choice(("utf-16", "utf-8-sig", "latin-1")), "replace")
    return draw.choice((b"", b"\0", b"\xff\xfe", b"null", b"[]", *(text.encode() for text in DEEP)))


def damaged_value(content: Any, draw: random.Random) -> Any:  # noqa: ANN401  (plain data of any shape)
    """Return plain data with one entry that is changed, removed, renamed or added."""
    if isinstance(content, dict) and content:
        key = draw.choice(list(content))
        kind = draw.randrange(6)
        if kind == 0:
            return {name: value for name, value in content.items() if name != key}
        if kind == 1:
            return {(f"{name}x" if name == key else name): value for name, value in content.items()}
        if kind == 2:
            return content | {draw.choice(("extra", "", "\ud800", "data")): draw.choice(VALUES)}
        return content | {key: damaged_value(content[key], draw)}
    if isinstance(content, list) and content and draw.random() < 0.7:
        place = draw.randrange(len(content))
        return [*content[:place], damaged_value(content[place], draw), *content[place + 1 :]]
    return draw.choice(VALUES)


def damage(path: Path, draw: random.Random) -> None:
    """Damage a file in a way that suits its kind."""
    if path.suffix == ".safetensors" and draw.random() < 0.5:
        tensors = load_file(path)
        first, second = draw.sample(sorted(tensors), 2)
        kind = draw.randrange(5)
        if kind == 0:
            tensors[first], tensors[second] = tensors[second].clone(), tensors[first].clone()
        elif kind == 1:
            tensors[first] = tensors[first].float() * draw.choice((float("nan"), float("inf")))
        elif kind == 2:
            del tensors[first]
        elif kind == 3:
            tensors["more"] = torch.ones(2)
        else:
            tensors[first] = tensors[first].to(draw.choice((torch.float64, torch.int8, torch.bool)))
        save_file(tensors, path)
    elif path.suffix == ".json" and draw.random() < 0.7:
        text = json.dumps(damaged_value(json.loads(path.read_text("utf-8")), draw), ensure_ascii=False)
        path.write_bytes(text.encode("utf-8", "backslashreplace"))
    elif path.suffix == ".yaml" and draw.random() < 0.6:
        changed = damaged_value(yaml.safe_load(path.read_text("utf-8")), draw)
        text = yaml.safe_dump(changed) if draw.random() < 0.7 else draw.choice(YAML_TEXTS)
        path.write_bytes(text.encode("utf-8", "backslashreplace"))
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), draw))


def read_model(folder: RunFolder) -> None:
    """Label an image with the model of a run."""
    probabilities = folder.read_model().predict_proba([folder.path.parent / "image.png"])
    if not np.isfinite(probabilities).all() or abs(probabilities.sum() - 1) > 1e-3:
        raise ValueError(f"probabilities {probabilities}")


def read_diagnosis(folder: RunFolder) -> None:
    """Diagnose the history of a run."""
    decisions = folder.read_decisions()
    diagnose(folder.read_history(), decisions.plan, decisions.evidence)


READERS: dict[str, tuple[Callable[[RunFolder], object], ...]] = {
    "model.safetensors": (read_model,),
    "config.json": (read_model,),
    "plan.json": (read_model, read_diagnosis, lambda folder: check_plan(folder.path / "plan.json")),
    "evidence.json": (read_diagnosis,),
    "choice.json": (RunFolder.read_decisions,),
    "recipe.yaml": (RunFolder.read_decisions,),
    "history.jsonl": (read_diagnosis,),
    "state.json": (lambda folder: read_state(folder.path), read_diagnosis),
    "metrics.json": (RunFolder.read_metrics,),
    "data.json": (lambda folder: DataIdentity.load(folder.path / "data.json"),),
    "predictions.parquet": (lambda folder: read_predictions(folder.path),),
}
"""Functions that read each file of a run folder."""


def try_folder(base: Path, place: Path, draw: random.Random) -> str:
    """Damage a file of a run folder and read it."""
    name = draw.choice(list(READERS))
    folder = place / "run"
    shutil.copytree(base / "run", folder)
    shutil.copy(base / "image.png", place)
    damage(folder / name, draw)
    refused = [refuses(partial(read, RunFolder(folder))) for read in READERS[name]]
    return "refused" if any(refused) else "read"


def try_table(base: Path, place: Path, draw: random.Random) -> str:
    """Damage a table and load its images."""
    name = draw.choice(("labels.csv", "labels.tsv", "labels.parquet"))
    shutil.copytree(base / "images", place / "images")
    frame = pd.read_csv(base / "labels.csv")
    if draw.random() < 0.4:
        column, row = draw.choice(list(frame.columns)), draw.randrange(len(frame))
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = draw.choice(("", "\0", "a\nb", '"', "=cmd", "/etc/passwd", " ", "a,b", None, "\ud800"))
    path = place / name
    try:
        if name.endswith("parquet"):
            frame.to_parquet(path)
        else:
            text = frame.to_csv(index=False, sep="\t" if name.endswith("tsv") else ",")
            path.write_bytes(text.encode("utf-8", "replace"))
    except Exception:  # what cannot be written cannot be given
        return "read"
    if draw.random() < 0.8:
        path.write_bytes(damaged_bytes(path.read_bytes(), draw))
    return "refused" if refuses(lambda: load_images(str(path))) else "read"


def try_recipe(base: Path, place: Path, draw: random.Random) -> str:
    """Damage a recipe and read it."""
    shutil.copy(base / "recipe.yaml", place)
    damage(place / "recipe.yaml", draw)
    return "refused" if refuses(lambda: load_recipe(place / "recipe.yaml")) else "read"


def try_plan(base: Path, place: Path, draw: random.Random) -> str:
    """Damage a plan and read it."""
    shutil.copy(base / "run" / "plan.json", place)
    damage(place / "plan.json", draw)
    return "refused" if refuses(lambda: Plan.load(place / "plan.json")) else "read"


TRIALS = {"folders": try_folder, "tables": try_table, "recipes": try_recipe, "plans": try_plan}
"""Kinds of trials by name."""


def refuses(read: Callable[[], object]) -> bool:
    """Return whether reading ends with an error of the toolkit, in one line of moderate length.

    Raises:
        ValueError: the sentence is several lines, or a page long.
    """
    try:
        read()
    except FinetuneError as error:
        if len(str(error)) > 2000:
            raise ValueError(f"a sentence of {len(str(error))} characters: {str(error)[:90]}") from None
        return True
    return False


def make_inputs(base: Path) -> None:
    """Write a run folder, its images, a table of them, and a recipe."""
    draw = np.random.default_rng(0)
    rows = ["path,label,split,group"]
    for number, (name, level) in enumerate((("a", 60), ("b", 180)) * 8):
        path = base / "images" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((level + draw.integers(-50, 50, (32, 32, 3))).astype(np.uint8)).save(path)
        rows.append(f"images/{name}/{number}.png,{name},train,{number}")
    shutil.copy(path, base / "image.png")
    (base / "labels.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), base / "weights.pt")
    recipe = load_recipe(
        data=str(base / "images"), model="test_efficientnet", weights=str(base / "weights.pt"), image_size=32,
        strategy="partial", steps=3, batch_size=4, seed=1, training={"learning_rate": 1e-3},
    )  # fmt: skip
    run(recipe, base / "run")
    shutil.copy(base / "run" / "recipe.yaml", base / "recipe.yaml")


def attempt(kind: str, seed: int, number: int, base: Path) -> str:
    """Return the outcome of a trial: `read`, `refused`, or a fault in words."""
    draw = random.Random(f"{kind} {seed} {number}")

    def hang(*_: int | FrameType | None) -> None:
        raise HangError

    signal.signal(signal.SIGPROF, hang)
    with tempfile.TemporaryDirectory() as folder:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            return TRIALS[kind](base, Path(folder), draw)
        except HangError:
            return f"fault: more than {SECONDS} s of CPU"
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            own = [each for each in traceback.extract_tb(error.__traceback__) if "/finetune/" in each.filename]
            where = (own or [last])[-1]
            return f"fault: {type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}:{where.lineno})"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def attempt_all(kind: str, seed: int, numbers: range, base: Path) -> dict[int, str]:
    """Return the outcome of each trial, which run in a copy of this process; those that it did not reach are faults."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(write, "w") as pipe:
            for number in numbers:
                pipe.write(json.dumps([number, attempt(kind, seed, number, base)]) + "\n")
                pipe.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = dict(map(json.loads, pipe))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        lost = next(number for number in numbers if number not in found)
        found[lost] = f"fault: the process died with status {status}"
        found |= attempt_all(kind, seed, range(lost + 1, numbers.stop), base) if lost + 1 < numbers.stop else {}
    return found


def main() -> None:
    """Try all kinds and print how many inputs were read, refused and not ended with a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="number of damaged inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damages")
    parser.add_argument("--kinds", nargs="+", choices=TRIALS, default=list(TRIALS), help="kinds of inputs")
    parser.add_argument("--only", type=int, help="number of the only trial to repeat")
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_inputs(base)
        count = arguments.trials // len(arguments.kinds)
        for kind in arguments.kinds:
            chosen = range(count) if arguments.only is None else range(arguments.only, arguments.only + 1)
            for first in range(chosen.start, chosen.stop, BATCH):
                numbers = range(first, min(first + BATCH, chosen.stop))
                for number, outcome in attempt_all(kind, arguments.seed, numbers, base).items():
                    outcomes[f"{kind}: {outcome.partition(':')[0]}"] += 1
                    if outcome.startswith("fault"):
                        print(f"{kind} {number}: {outcome}", flush=True)
    for name, number in sorted(outcomes.items()):
        print(f"{name} {number}")
    spent = os.times()
    print(f"{spent.user + spent.children_user - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
