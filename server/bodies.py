"""Request bodies: read under a limit while they stream in, and checked against the wire contract."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from pipeline.portrait import Crop
from server.control import Params, describe
from server.errors import RequestError, TooLarge, UnsupportedMedia

__all__ = ["CropBody", "OfferBody", "read_body", "read_json", "require_type"]

M = TypeVar("M", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OfferBody(_Body):
    """The body of POST /offer."""

    sdp: str
    type: str = Field(pattern="^offer$")
    portrait: str | None = Field(default=None, max_length=80)
    seed: int = Field(default=0, ge=0, lt=2**63)
    params: Params = Params()


class CropBody(_Body):
    """The body of PUT /api/portraits/{id}/crop."""

    x_px: float
    y_px: float
    width_px: float
    height_px: float

    @property
    def crop(self) -> Crop:
        """As the pipeline knows it; not yet checked against the image."""
        return Crop(x_px=self.x_px, y_px=self.y_px, width_px=self.width_px, height_px=self.height_px)


async def read_body(request: Request, *, what: str, limit_bytes: int, timeout_s: float) -> bytes:
    """Read a body, and stop as soon as it is over its limit.

    Args:
        request: The request.
        what: What the body is, for the error.
        limit_bytes: The limit.
        timeout_s: Until all of it has to be there.

    Returns:
        The body, at least one byte.

    Raises:
        TooLarge: It is over its limit, by its header or by what arrives.
        RequestError: It is empty or did not arrive in time.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:19]) > limit_bytes:
        raise TooLarge(what, limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > limit_bytes:
                    raise TooLarge(what, limit_bytes)
    except TimeoutError as exc:
        raise RequestError(f"the {what} did not arrive within {timeout_s:g} s") from exc
    except ClientDisconnect as exc:
        raise RequestError(f"the {what} ended early") from exc
    if not body:
        raise RequestError(f"the {what} is empty")
    return bytes(body)


async def read_json(request: Request, model: type[M], *, limit_bytes: int, timeout_s: float) -> M:
    """Read a JSON body and check it.

    Args:
        request: The request. Its type has to be application/json: that keeps other origins out.
        model: What it has to be.
        limit_bytes: The limit.
        timeout_s: Until all of it has to be there.

    Returns:
        The body, checked.

    Raises:
        UnsupportedMedia: It is not declared as JSON.
        TooLarge: It is over its limit.
        RequestError: It breaks the wire contract; says what is wrong first.
    """
    require_type(request, ("application/json",))
    body = await read_body(request, what="JSON body", limit_bytes=limit_bytes, timeout_s=timeout_s)
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        raise RequestError(describe(exc)) from exc


def require_type(request: Request, allowed: tuple[str, ...]) -> None:
    """Check the Content-Type of a request.

    Args:
        request: The request.
        allowed: The types that are taken, in lower case and without parameters.

    Raises:
        UnsupportedMedia: It is none of the allowed.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in allowed:
        raise UnsupportedMedia("Content-Type", repr(given[:80]), f"it has to be {' or '.join(allowed)}")
