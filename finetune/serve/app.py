"""Define the routes of the server: the page, the predictions, and its state."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune import __version__
from finetune.serve.answers import Answer, FailedImage, Health, LabelledImage, Refusal, label
from finetune.serve.batching import Batcher, Full, ServedModel
from finetune.serve.uploads import MOST_BYTES, UNREADABLE, Refused, check_upload, why_refused
from finetune.templates import open_templates

ABOUT = """Label images with a trained classifier: `POST /predict` with one or several files in the field `images`."""

FAILED = 500
"""HTTP status of an image that could be decoded but not predicted."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": Answer | Refusal, "description": "The request has too many bytes, or all images too many pixels."},
    415: {"model": Answer | Refusal, "description": "The request is not a form, or no file is an image."},
    422: {"model": Answer | Refusal, "description": "There is no file in the field `images`, or none can be decoded."},
    503: {"model": Refusal, "description": "Too many images are waiting; repeat the request later."},
}
"""Answers of `POST /predict` without a label, for its description."""


def create_app(model: ServedModel[Any], batcher: Batcher[Any], name: str) -> FastAPI:
    """Return the application.

    Args:
        model: the model, which decodes images.
        batcher: the thread that predicts with it.
        name: name of the model, for people.
    """
    app = FastAPIOffline(title="finetune serve", version=__version__, description=ABOUT, redoc_url=None)
    app.add_middleware(BodyLimit)
    app.add_exception_handler(RequestValidationError, _without_images)
    # Decoding takes memory and a core for each image; the number of threads bounds both.
    decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decoding")
    page, policy = _page(name, model)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.get("/health")
    async def health() -> Health:
        """Return the state of the server."""
        return Health(
            status="ok",
            model=name,
            classes=model.class_names,
            images_in_work=batcher.num_taken,
            version=__version__,
        )

    @app.post("/predict", response_model=Answer, responses=REFUSALS)
    async def predict(images: list[UploadFile]) -> JSONResponse:
        """Label images. A file that cannot be labelled has its reason in the answer, next to the labels of the others;
        only if no image was labelled, the status is that of the first reason."""
        try:
            with batcher.places(len(images)):
                found = await _predict(model, batcher, decoders, images)
        except Full:
            raise _too_many(len(images), batcher) from None
        status, answer = _answer(images, model, found)
        return JSONResponse(answer.model_dump(mode="json"), status)

    return app


async def _predict(
    model: ServedModel[Any], batcher: Batcher[Any], decoders: ThreadPoolExecutor, images: Sequence[UploadFile]
) -> list[Any]:
    """Return the probabilities (n_classes,) of each image, or the `Refused` that says why there are none."""
    loop = asyncio.get_running_loop()

    def read(image: UploadFile) -> Any:  # noqa: ANN401  (what the model prepares)
        try:
            encoded = image.file.read()
            check_upload(encoded)
            return model.prepare(encoded)
        except Exception as error:  # decoders raise exceptions of any type
            return why_refused(error)

    read_images = await asyncio.gather(*(loop.run_in_executor(decoders, read, image) for image in images))
    futures = batcher.submit([image for image in read_images if not isinstance(image, Refused)])
    rows = iter(await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True))
    return [image if isinstance(image, Refused) else _row(next(rows)) for image in read_images]


def _row(found: Any) -> Any:  # noqa: ANN401  (probabilities, or an exception)
    """Return probabilities, or a refusal in place of an exception."""
    if isinstance(found, Exception):
        reason = " ".join(str(found).split())[:200]
        return Refused(FAILED, f"the network fails on this image ({type(found).__name__}: {reason})")
    return found


def _answer(images: Sequence[UploadFile], model: ServedModel[Any], found: Sequence[Any]) -> tuple[int, Answer]:
    """Return the status and the answer of a request."""
    answers: list[LabelledImage | FailedImage] = []
    for number, (image, row) in enumerate(zip(images, found, strict=True), start=1):
        name = image.filename or f"image {number}"
        is_refused = isinstance(row, Refused)
        answers.append(
            FailedImage(name=name, error=row.reason)
            if is_refused
            else label(name, model.class_names, row, model.thresholds, model.rule)
        )
    reasons = [row.status for row in found if isinstance(row, Refused)]
    return reasons[0] if len(reasons) == len(found) else 200, Answer(images=tuple(answers))


def _too_many(count: int, batcher: Batcher[Any]) -> HTTPException:
    """Return the answer to a request whose images find no place."""
    most = batcher.most_waiting
    if count > most:
        return HTTPException(413, f"{count} images were sent, but at most {most} are accepted at once; send fewer")
    sentence = f"{batcher.num_taken} of at most {most} images are waiting; repeat the request in a second"
    return HTTPException(503, sentence, {"Retry-After": "1"})


async def _without_images(request: Request, _error: Exception) -> JSONResponse:
    """Answer a request that has no file in the field `images`."""
    kind = request.headers.get("content-type", "").partition(";")[0] or "nothing"
    how_to = "send a form with files in the field 'images', such as curl -F images=@photo.jpg"
    if kind != "multipart/form-data":
        return JSONResponse({"detail": f"expected multipart/form-data, but {kind} was sent; {how_to}"}, 415)
    return JSONResponse({"detail": f"there is no file in the field 'images'; {how_to}"}, UNREADABLE)


class BodyLimit:
    """A layer that refuses requests of more than `MOST_BYTES` bytes, with or without a Content-Length."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its bytes as they arrive."""
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count <= MOST_BYTES:
                return message
            # A client reads the answer once it has sent everything, so the rest is read, within reason, and dropped.
            while message.get("more_body") and count <= 8 * MOST_BYTES:
                message = await receive()
                count += len(message.get("body", b""))
            limit = f"{MOST_BYTES // 2**20} MiB"
            raise HTTPException(413, f"the request has more than {limit}; send fewer or smaller images at once")

        await self._app(scope, counted if scope["type"] == "http" else receive, send)


def _page(name: str, model: ServedModel[Any]) -> tuple[str, str]:
    """Return the page, and its policy: the browser runs its own script alone, and asks no other server."""
    templates = open_templates("finetune.serve")
    policy = (
        f"default-src 'none'; script-src '{templates.globals['script_hash']}'; style-src 'unsafe-inline'; "
        f"img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = templates.get_template("page.html").render(
        name=name, class_names=model.class_names, has_sets=model.thresholds is not None, most_bytes=MOST_BYTES
    )
    return page, policy
