"""Push a trained model to the Hugging Face hub: prepare its files, show them, and upload them in one commit."""

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from finetune.decide.plan import Plan
from finetune.errors import PublishError, RunFolderError
from finetune.names import quoted
from finetune.publish.card import Described, public_name, write_card
from finetune.publish.licence import UNKNOWN, Base, find_base
from finetune.runs.folder import RunFolder
from finetune.runs.model_files import CONFIG, WEIGHTS
from finetune.runs.places import resume_command


@dataclass(frozen=True, slots=True)
class Publication:
    """Files that go to a repository of the hub."""

    repository: str
    """Name of the repository, `user/name`."""
    files: dict[str, bytes | Path]
    """Content of each file by its name, or the path of a file that is uploaded as it is."""

    def size_of(self, name: str) -> int:
        """Return the size of a file in bytes."""
        content = self.files[name]
        return content.stat().st_size if isinstance(content, Path) else len(content)

    @property
    def card(self) -> str:
        """The model card."""
        content = self.files["README.md"]
        assert isinstance(content, bytes)
        return content.decode("utf-8")


def prepare(run: Path, repository: str) -> Publication:
    """Return the files of a run for the hub: timm's two files, the plan without paths of this machine, and the card.

    Args:
        run: the folder of a finished run with a single network.
        repository: name on the hub, `user/name`.

    Raises:
        PublishError: the name is not one of the hub's, or the run is an ensemble, which timm's format does not hold.
        RunFolderError: there is no finished run.
    """
    owner, slash, name = repository.partition("/")
    if not (slash and owner and name) or "/" in name:
        raise PublishError(f"'{repository}' is not the name of a repository; expected user/name")
    folder = RunFolder(run)
    if folder.members != (folder,):
        raise PublishError(
            f"{run} is an ensemble of {len(folder.members)} networks, and timm's format holds one; push a member "
            f"({folder.members[0].path}), or export the whole: finetune export {quoted(run)}"
        )
    decisions = folder.read_decisions()
    if decisions.plan.has_sets:
        raise PublishError(
            "models that give an image any number of labels are not published, because the card describes one label; "
            "copy the run folder, or export it"
        )
    if decisions.plan.answers is not None:
        raise PublishError(
            "models whose answer is the least costly one are not published, because timm names the most probable "
            "class; copy the run folder, or export it"
        )
    if not folder.is_finished():
        raise RunFolderError(f"the run in {run} is not finished; continue it: {resume_command(run)}")
    base = find_base(decisions.plan.model, decisions.plan.weights)
    config = json.loads((run / CONFIG).read_text("utf-8"))
    described = Described(
        repository=repository,
        run=decisions,
        metrics=folder.read_metrics(),
        base=base,
        counts=_count_images(run / "splits.csv"),
        temperature=float(config["temperature"]),
    )
    plan = _without_paths(decisions.plan).model_dump(mode="json", by_alias=True)
    return Publication(
        repository,
        {
            "README.md": write_card(described).encode(),
            CONFIG: _as_json(_with_licence(config, base)),
            "plan.json": _as_json(plan),
            WEIGHTS: run / WEIGHTS,
        },
    )


def push(publication: Publication) -> str:
    """Create the repository unless it exists, upload the files in one commit, and return the address.

    Raises:
        PublishError: the hub cannot be reached, or it refuses the upload.
    """
    api = HfApi(library_name="finetune")
    try:
        address = api.create_repo(publication.repository, exist_ok=True)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in publication.files.items()
        ]
        api.create_commit(publication.repository, operations, commit_message="Upload a model trained by finetune")
    except Exception as error:  # the hub's client and its HTTP library raise exceptions of many types
        raise PublishError(
            f"{publication.repository} could not be published on {api.endpoint}: {_explain(error)}"
        ) from error
    return str(address)


def _explain(error: Exception) -> str:
    """Return the reason of a failed upload and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "you are not logged in; run hf auth login, or set HF_TOKEN to a token that may write"
    if status == 403:
        return "your token may not write there; check the owner in the name, and the token's permissions"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _count_images(path: Path) -> dict[str, int]:
    """Return the number of images in each split of a run; {} if the run has no list of them."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        counts = Counter(row["split"] for row in csv.DictReader(file))
    return {name: counts[name] for name in ("train", "validation", "test") if counts[name]}


def _with_licence(config: dict[str, Any], base: Base) -> dict[str, Any]:
    """Return timm's configuration with the licence of the weights that the training started from."""
    known = {key: value for key, value in config["pretrained_cfg"].items() if key != "license"}
    return {**config, "pretrained_cfg": known | ({} if base.licence == UNKNOWN else {"license": base.licence})}


def _without_paths(plan: Plan) -> Plan:
    """Return a plan in which files and folders of this machine have their names alone."""
    names = {key: Path(value).name for key in ("weights", "groups") if "/" in (value := getattr(plan, key))}
    return plan.changed(data=public_name(plan.data), **names)


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
