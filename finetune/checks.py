"""Check the paths that a command was given before anything that takes long is imported."""

import os
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import ModelError, RecipeError, RunFolderError
from finetune.recipe import Recipe
from finetune.runs import places
from finetune.serve.server import check_libraries


def checked(recipe: Recipe, output: Path | None) -> Recipe:
    """Return a recipe whose paths exist, for a run folder that is free.

    Raises:
        FinetuneError: there is no such data or no such file with weights, the time budget is shorter than any run, or
            the run folder is taken.
    """
    from finetune.data import check_data  # it imports numpy, which --help does not need
    from finetune.decide.budget import refuse_hopeless_budget

    check_data(recipe.data)
    refuse_hopeless_budget(recipe.time_budget)
    if recipe.weights is not None and not Path(recipe.weights).exists():
        raise ModelError(f"there is no weights file {recipe.weights}")
    # With several processes, another one may have begun to write there.
    if os.environ.get("WORLD_SIZE", "1") == "1":
        places.refuse_if_taken(output or places.default_folder(recipe.data))
    return recipe


def check_audit(data: str, output: Path | None, clean: Path | None) -> None:
    """Check that the data of an audit exists, and that its output would overwrite nothing.

    Raises:
        FinetuneError: there is no such data, or a file to write exists.
    """
    from finetune.data import check_data

    check_data(data)
    for option, path in (("--output", output and output / "audit.csv"), ("--clean", clean)):
        if path is None:
            continue
        if path.exists():
            raise RecipeError(f"{path} exists and is not overwritten; give another {option}")
        if path.parent.exists() and not path.parent.is_dir():
            raise RecipeError(f"{path.parent} is a file, not a folder; give another {option}")
    if clean is not None and clean.suffix.lower() != ".csv":
        raise RecipeError(f"--clean writes a CSV table, and {clean} does not end with .csv; name it {clean.stem}.csv")


def check_comparison(runs: Sequence[Path], data: str | None) -> None:
    """Check that there are two or more finished runs, and that the data exists.

    Raises:
        FinetuneError: there is one run, a run is missing or not finished, or there is no such data.
    """
    from finetune.data import check_data

    for run in runs:
        places.refuse_without_a_model(run)
    if len(runs) < 2:
        raise RecipeError(f"{runs[0]} is compared with another run; give two or more run folders")
    if data is not None:
        check_data(data)


def check_plan(plan: Path) -> None:
    """Check that a plan can be read, and that its data exists.

    Raises:
        FinetuneError: there is no such plan or no such data, or a value of the plan is wrong.
    """
    from finetune.data import check_data
    from finetune.decide.plan import Plan

    check_data(Plan.load(plan).data)


def check_resumed(run: Path, is_tuning: bool) -> None:
    """Check that a folder holds an interrupted search or, unless `is_tuning`, an interrupted training.

    Raises:
        RunFolderError: there is no run, it is finished, or it is of the other kind.
    """
    places.refuse_without_a_plan(run)
    places.refuse_if_finished(run)
    if is_tuning:
        places.refuse_without_tuning(run)
    else:
        places.refuse_tuning(run)


def check_prediction(
    run: Path,
    output: Path | None,
    images: Sequence[Path] = (),
    data: str | None = None,
    resume: bool = False,
) -> None:
    """Check that there is a trained model, and something to predict, and that the output is a new file.

    Args:
        run: run folder, or exported model.
        output: file to write, or None.
        images: images to predict.
        data: labelled images to predict, or None.
        resume: whether an interrupted prediction may be continued.

    Raises:
        FinetuneError: the model, an image or the data is missing, the output exists, or it is incomplete and is not
            continued.
    """
    from finetune.data import check_data, check_images

    _check_table(output, bool(images), resume)
    if run.suffix != ".onnx":  # an exported model is a file, which is checked as it is read
        places.refuse_without_a_model(run)
    check_images(images)
    if data is not None:
        check_data(data)


def check_embedding(model: str, output: Path, images: Sequence[Path], resume: bool) -> None:
    """Check that there may be a model, that there is something to embed, and that the output is a new Parquet file.

    Args:
        model: run folder, or timm's name of a network.
        output: file to write.
        images: images to embed.
        resume: whether an interrupted command may be continued.

    Raises:
        FinetuneError: an image or the run is missing, the output is not a new Parquet file, or it is incomplete and is
            not continued.
    """
    from finetune.data import check_images

    if output.suffix.lower() != ".parquet":
        raise RecipeError(
            f"features are written as Parquet, and {output} is not; give an --output that ends in .parquet"
        )
    _check_table(output, True, resume)
    if model.endswith(".onnx"):
        raise ModelError(f"{model} is an exported model, which has no features; give the run folder that it is made of")
    if is_run(model):
        places.refuse_without_a_model(Path(model))
    check_images(images)


def is_run(model: str) -> bool:
    """Return whether a model is the path of a run folder, not timm's name of a network."""
    return os.sep in model or Path(model).exists()


def _check_table(output: Path | None, can_be_continued: bool, resume: bool) -> None:
    """Check that a table can be written.

    Raises:
        FinetuneError: it exists, it is incomplete and is not continued, or there is nothing to continue or to share.
    """
    if resume and output is None:
        raise RecipeError("--resume continues a file, and none is given; name the interrupted one with --output")
    if output is None:
        if os.environ.get("WORLD_SIZE", "1") != "1" and can_be_continued:
            raise RecipeError("several processes cannot print one table; name a file with --output")
        return
    if os.environ.get("RANK", "0") != "0":  # the main process may have begun to write
        return
    if output.exists():
        raise RunFolderError(f"{output} exists and is not overwritten; give another --output")
    part = output.with_name(f"{output.name}.part")
    if can_be_continued and part.exists() and not resume:
        raise RunFolderError(
            f"{part} is the beginning of an interrupted table; continue it with --resume, or delete it"
        )


def check_served(run: Path) -> None:
    """Check that there is a model to serve, and that the libraries for it are installed.

    Raises:
        FinetuneError: the run is missing or not finished, or a library is missing.
    """
    if run.suffix == ".onnx":
        from finetune.predict.onnx_model import refuse_without_a_file  # it imports numpy, which --help does not need

        refuse_without_a_file(run)
    else:
        places.refuse_without_a_model(run)
    check_libraries()
