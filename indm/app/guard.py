"""What stands between the server of ``indm app`` and Gradio: whose requests are taken, and how much they may bring."""

import contextlib
import sys
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indm.messages import brief

MOST_UPLOADED = 500_000_000  # bytes of all files that are kept
LARGEST_BODY = 1_000_000  # bytes of a request without a file
BLOCK = 4096  # bytes that the smallest file takes
Refusal = tuple[int, str]  # status and reason


class SameOrigin:
    """Refuses the requests of other sites, which a browser sends with their ``Origin``."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if "headers" in scope else Headers()
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2] == headers.get("host"):
            await self.app(scope, receive, send)
        else:
            await PlainTextResponse("Origin must be that of this page", 403)(scope, receive, send)


class Limits:
    """Refuses bodies that are too large, before they are read; an error is one line.

    Args:
        folder: where uploads are kept.
        largest: bytes of an upload.
    """

    def __init__(self, app: ASGIApp, folder: Path, largest: int):
        self.app, self.folder, self.largest, self.arriving = app, folder, largest, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, started = Headers(scope=scope), False
        refusal, size = self.refusal(scope["path"], headers), int(headers.get("content-length", 0))
        if refusal is not None:
            return await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self.arriving += size
        try:
            await self.app(scope, receive, noting)
        except Exception as error:
            words = brief(f"{scope['method']} {scope['path']}: {type(error).__name__}: {error}")
            print(f"indm: error: {words}", file=sys.stderr)
            if not started:
                await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
        finally:
            self.arriving -= size

    def refusal(self, path: str, headers: Headers) -> Refusal | None:
        """Why the body of a request is not read; None where it is."""
        if "transfer-encoding" in headers:
            return 411, "a request must say how long it is"
        size = int(headers.get("content-length", 0))
        if not headers.get("content-type", "").startswith("multipart/"):
            return (413, f"a request must be at most {LARGEST_BODY:,} bytes") if size > LARGEST_BODY else None
        if not path.endswith("/upload"):
            return 403, "files go to upload"
        if size > self.largest + LARGEST_BODY:
            return 413, f"an upload must be at most {self.largest:,} bytes"
        if bytes_below(self.folder) + self.arriving + size > MOST_UPLOADED:
            return 413, f"no more than {MOST_UPLOADED:,} bytes are kept; uploads go after an hour"
        return None


def bytes_below(folder: Path) -> int:
    """What the files of a folder take, about."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # just taken away
            total += path.stat().st_size + BLOCK
    return total
