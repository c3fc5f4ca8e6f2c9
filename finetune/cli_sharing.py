"""Define the commands that give a trained model to others: export it as one file, publish it, and serve it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from finetune.checks import check_served
from finetune.names import visible
from finetune.runs.places import refuse_without_a_model


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format_: Annotated[
        Literal["onnx", "torch-export"], typer.Option("--format", help="Format of the file; onnx by default.")
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="File to write; model.onnx or model.pt2 in the run folder by default.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Images to compare on; the run's test and held-out images by default.")
    ] = None,
) -> None:
    """Export a trained run as one file, which is kept only if it agrees with the run on at least 200 images."""
    refuse_without_a_model(run)
    from finetune.export import export_run

    path, agreement = export_run(run, format_, output, images)
    for line in agreement.lines():
        typer.echo(visible(line))
    typer.echo(f"{visible(str(path))} ({path.stat().st_size / 1e6:.1f} MB)")


def push(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    repository: Annotated[str, typer.Argument(help="Name on the Hugging Face hub: user/name.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be uploaded, and stop.")] = False,
) -> None:
    """Publish a trained run on the Hugging Face hub, in timm's format and with a model card."""
    refuse_without_a_model(run)
    from finetune import publish

    publication = publish.prepare(run, repository)
    if dry_run:
        for name in publication.files:
            typer.echo(f"{publication.size_of(name) / 1e3:12,.1f} kB  {name}")
        typer.echo(f"\n{publication.card}", nl=False)
        return
    typer.echo(f"published: {publish.push(publication)}")


def serve(
    run: Annotated[Path, typer.Argument(help="A run folder, or an ONNX file that export wrote.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1 by default, which only this machine reaches.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 8000 by default, 0 for any free one.")
    ] = 8000,
) -> None:
    """Answer requests for labels over HTTP, with a page to drop images on, until Ctrl+C or SIGTERM."""
    check_served(run)
    from finetune.serve import server

    bound = server.bind(host, port)  # before the model is read, which takes seconds
    server.serve(run, bound, typer.echo)
