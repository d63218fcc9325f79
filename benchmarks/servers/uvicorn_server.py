"""FastAPI and uvicorn around the scorer, one process, a pass a request: what comes first to one's mind.

    python -m benchmarks.servers.uvicorn_server --bundle FOLDER --port PORT

Two routes: a coroutine that computes at once, and a function, which FastAPI runs in threads.
"""

from __future__ import annotations

from typing import Any

import uvicorn
from benchmarks.servers.model import Model, asked_for
from fastapi import FastAPI


def build(model: Model) -> FastAPI:
    """The application."""
    app = FastAPI()

    @app.get("/recommend/{user}")
    async def recommend(user: str) -> dict[str, Any]:
        return model.recommend([user])[0]

    @app.get("/threads/recommend/{user}")
    def recommend_in_thread(user: str) -> dict[str, Any]:
        return model.recommend([user])[0]

    return app


def main() -> None:
    """Serve until a signal."""
    arguments = asked_for(__doc__)
    uvicorn.run(build(Model(arguments.bundle)), port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
