"""The server: OpenAI's endpoints over one engine, and the page."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from interventions.steering.live.engine import Engine
from serving.answers import Answers
from serving.guard import Guard, Rules
from serving.offer import Offer
from serving.page import POLICY, page
from serving.wire import ChatWanted, RequestError, TextWanted, read

logger = logging.getLogger(__name__)


def application(offer: Offer, engine: Engine, rules: Rules) -> Guard:
    """What uvicorn runs.

    Args:
        offer: The run's arms.
        engine: What answers; it is closed with the server.
        rules: Who may ask.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page(), headers={"content-security-policy": POLICY})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok"}

    @app.get("/v1/run")
    async def about() -> dict[str, Any]:
        rows, waiting = engine.load
        return {**offer.about, "under_way": rows, "waiting": waiting}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(offer, name) for name in offer.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name not in offer.names:
            raise RequestError(f"no model {name[:200]!r}; there are {', '.join(offer.names)}", status=404, code="model_not_found")  # fmt: skip
        return _model(offer, name)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answered(offer, engine, request, read(ChatWanted, await request.body()))

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await _answered(offer, engine, request, read(TextWanted, await request.body()))

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, error.status, {"retry-after": "1"} if error.status == 429 else None)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(RequestError(str(error.detail), status=error.status_code).body, error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        logger.warning("a request failed: %s", type(error).__name__)
        return JSONResponse(RequestError("the server failed to answer this", status=500).body, 500)

    return Guard(app, rules)


def _model(offer: Offer, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": offer.model.name}


async def _answered(offer: Offer, engine: Engine, request: Request, wanted: ChatWanted | TextWanted) -> Response:
    """The answer, whole or as a stream; a client that leaves frees its places."""
    answers = await run_in_threadpool(Answers, offer, engine, wanted)
    answers.submit()
    if wanted.stream:
        return StreamingResponse(answers.stream(), media_type="text/event-stream")
    leaving = asyncio.create_task(_gone(request))
    whole = asyncio.create_task(answers.whole())
    try:
        await asyncio.wait({leaving, whole}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(whole.result())
    finally:
        answers.drop()
        leaving.cancel()
        whole.cancel()


async def _gone(request: Request) -> None:
    """Until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
