"""The portraits that a session can show: those that ship with the code, and uploads kept in memory.

The id of an upload cannot be guessed and is told only to whoever uploaded it: who knows it may see and use the picture.
A visitor keeps a few: a further one takes the place of the oldest, but never of one that a live session shows.

State changes on the loop only; pictures are decoded, cut and encoded on an executor of their own.
"""

import asyncio
import io
import json
import logging
import secrets
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.portrait import Crop, PortraitSource, load_portrait
from server.errors import NotFound, UploadLimitReached

__all__ = ["FrameSize", "Portrait", "PortraitCut", "PortraitStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSize:
    """Size of the engine's frame."""

    height_px: int
    """Height."""
    width_px: int
    """Width."""

    @property
    def aspect(self) -> float:
        """Width divided by height."""
        return self.width_px / self.height_px


@dataclass(frozen=True, slots=True, kw_only=True)
class PortraitCut:
    """A portrait in the engine's frame."""

    id: str
    """Which portrait."""
    rgb: NDArray[np.uint8]
    """(height_px, width_px, 3)."""
    still: NDArray[np.uint8]
    """The same as I420, (height_px * 3 // 2, width_px)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Portrait:
    """A portrait and the part of it that is shown."""

    id: str
    """Its name on the wire."""
    name: str
    """Its name for people."""
    kind: str
    """"default" or "upload"."""
    source: PortraitSource
    """The picture."""
    crop: Crop | None
    """The part that is shown; None means the part that suits the engine's frame best."""
    is_face_found: bool
    """Whether the crop was laid around a face."""
    visitor: str | None = None
    """Who uploaded it; None for a default."""
    version: int = 1
    """Goes up with every change of the crop."""

    @property
    def url(self) -> str:
        """Where the picture is served; changes with the picture."""
        return f"/api/portraits/{self.id}.png" + (f"?v={self.version}" if self.kind == "upload" else "")

    @property
    def entry(self) -> dict[str, Any]:
        """The portrait in the list of portraits."""
        return {"id": self.id, "name": self.name, "kind": self.kind, "url": self.url}

    @property
    def detail(self) -> dict[str, Any]:
        """The portrait with its crop."""
        assert self.crop is not None
        return {
            **self.entry,
            "image": {"width_px": self.source.width_px, "height_px": self.source.height_px},
            "crop": {
                "x_px": self.crop.x_px,
                "y_px": self.crop.y_px,
                "width_px": self.crop.width_px,
                "height_px": self.crop.height_px,
            },
            "face_found": self.is_face_found,
        }


class PortraitStore:
    """All portraits of one server.

    Args:
        executor: Where pictures are worked on.
        max_uploads: How many uploads are kept.
        max_uploads_per_visitor: How many of them may be of one visitor.
    """

    def __init__(self, executor: Executor, *, max_uploads: int, max_uploads_per_visitor: int) -> None:
        self._executor = executor
        self._max_uploads = max_uploads
        self._max_uploads_per_visitor = max_uploads_per_visitor
        self._portraits: dict[str, Portrait] = {}
        self._pngs: dict[tuple[str, int, FrameSize | None], bytes] = {}

    async def load_defaults(self, folder: Path) -> None:
        """Add the portraits of a folder with an index.json of `[{"id", "name"}]`; a missing folder has none.

        Args:
            folder: The folder; every portrait lies beside the index as `{id}.png`.

        Raises:
            MediaError: A picture is damaged.
        """
        for portrait in await self._off_loop(lambda: _read_defaults(folder)):
            self._portraits[portrait.id] = portrait

    @property
    def default_id(self) -> str | None:
        """The portrait for a viewer who chose none, or None when none ships with the code."""
        return next((name for name, portrait in self._portraits.items() if portrait.kind == "default"), None)

    def list(self, upload_ids: Collection[str] = ()) -> list[dict[str, Any]]:
        """The defaults, and then those uploads that the asker knows: an upload belongs to whoever has its id.

        Args:
            upload_ids: Ids, untrusted; those of no portrait are left out.

        Returns:
            Their entries.
        """
        return [
            portrait.entry
            for portrait in self._portraits.values()
            if portrait.kind == "default" or portrait.id in upload_ids
        ]

    def get(self, portrait_id: str) -> Portrait:
        """One portrait.

        Args:
            portrait_id: Its id, untrusted.

        Returns:
            The portrait.

        Raises:
            NotFound: There is none of that id.
        """
        try:
            return self._portraits[portrait_id]
        except KeyError as exc:
            raise NotFound("portrait", portrait_id) from exc

    async def upload(
        self, data: bytes, size: FrameSize, *, visitor: str, shown: Callable[[], Collection[str]]
    ) -> Portrait:
        """Take an uploaded image file.

        Args:
            data: The file, untrusted.
            size: Size of the engine's frame.
            visitor: Who uploads it.
            shown: Says which portraits live sessions show now.

        Returns:
            The new portrait.

        Raises:
            UploadLimitReached: There is no room for it.
            MediaError: It cannot be used.
        """
        self._find_surplus(visitor, shown())
        source, crop, is_face_found = await self._off_loop(lambda: _decode(data, size))
        portrait = Portrait(
            id=f"u-{secrets.token_hex(16)}",
            name="Upload",
            kind="upload",
            source=source,
            crop=crop,
            is_face_found=is_face_found,
            visitor=visitor,
        )
        # Others may have come while this one was decoded.
        surplus_id = self._find_surplus(visitor, shown())
        if surplus_id is not None:
            del self._portraits[surplus_id]
        self._portraits[portrait.id] = portrait
        self._prune()
        return portrait

    async def move_crop(self, portrait_id: str, crop: Crop, size: FrameSize) -> Portrait:
        """Show another part of an upload.

        Args:
            portrait_id: Its id, untrusted.
            crop: The part, untrusted.
            size: Size of the engine's frame.

        Returns:
            The portrait as it is now.

        Raises:
            NotFound: There is no such upload.
            MediaError: The crop cannot be used.
        """
        portrait = self.get(portrait_id)
        if portrait.kind != "upload":
            raise NotFound("uploaded portrait", portrait_id)
        await self._off_loop(lambda: portrait.source.cut(crop, height_px=size.height_px, width_px=size.width_px))
        moved = replace(self.get(portrait_id), crop=crop, version=self.get(portrait_id).version + 1)
        self._portraits[portrait_id] = moved
        self._prune()
        return moved

    async def cut(self, portrait_id: str, size: FrameSize) -> PortraitCut:
        """Cut a portrait for the engine.

        Args:
            portrait_id: Its id, untrusted.
            size: Size of the engine's frame.

        Returns:
            The cut.

        Raises:
            NotFound: There is none of that id.
            MediaError: It cannot be cut to that size.
        """
        portrait = self.get(portrait_id)
        return await self._off_loop(lambda: _cut(portrait, size))

    async def png(self, portrait_id: str, size: FrameSize | None) -> tuple[bytes, str]:
        """A portrait as a picture file.

        Args:
            portrait_id: Its id, untrusted.
            size: Size of the engine's frame; None (not known yet) gives the whole picture.

        Returns:
            A PNG file and its entity tag.

        Raises:
            NotFound: There is none of that id.
        """
        portrait = self.get(portrait_id)
        key = (portrait_id, portrait.version, size)
        if key not in self._pngs:
            self._pngs[key] = await self._off_loop(lambda: _encode(portrait, size))
        suffix = "whole" if size is None else f"{size.width_px}x{size.height_px}"
        return self._pngs[key], f'"{portrait_id}-{portrait.version}-{suffix}"'

    def _find_surplus(self, visitor: str, shown: Collection[str]) -> str | None:
        """Choose the upload that goes for a new one of a visitor; None where there is room."""
        uploads = [portrait for portrait in self._portraits.values() if portrait.kind == "upload"]
        own = [portrait for portrait in uploads if portrait.visitor == visitor]
        if len(own) >= self._max_uploads_per_visitor:
            candidates = own
        elif len(uploads) >= self._max_uploads:
            candidates = own + [portrait for portrait in uploads if portrait.visitor != visitor]
        else:
            return None
        for portrait in candidates:
            if portrait.id not in shown:
                return portrait.id
        raise UploadLimitReached(len(candidates))

    def _prune(self) -> None:
        """Forget pictures of portraits and versions that are gone."""
        kept = {(portrait.id, portrait.version) for portrait in self._portraits.values()}
        self._pngs = {key: png for key, png in self._pngs.items() if key[:2] in kept}

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _read_defaults(folder: Path) -> list[Portrait]:
    index = folder / "index.json"
    if not index.is_file():
        logger.warning("there are no default portraits")
        return []
    return [
        Portrait(
            id=str(entry["id"]),
            name=str(entry["name"]),
            kind="default",
            source=load_portrait(folder / f"{entry['id']}.png"),
            crop=None,
            is_face_found=True,
        )
        for entry in json.loads(index.read_text(encoding="utf-8"))
    ]


def _decode(data: bytes, size: FrameSize) -> tuple[PortraitSource, Crop, bool]:
    source = load_portrait(data)
    crop, is_face_found = source.suggest_crop(size.aspect)
    return source, crop, is_face_found


def _cut(portrait: Portrait, size: FrameSize) -> PortraitCut:
    source = portrait.source
    crop = portrait.crop
    if crop is None or abs(crop.width_px / crop.height_px / size.aspect - 1) > 0.02:
        whole = Crop(x_px=0.0, y_px=0.0, width_px=float(source.width_px), height_px=float(source.height_px))
        is_fitting = abs(source.width_px / source.height_px / size.aspect - 1) <= 0.02
        crop = whole if is_fitting else source.suggest_crop(size.aspect)[0]
    rgb = source.cut(crop, height_px=size.height_px, width_px=size.width_px)
    still = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p").to_ndarray()
    return PortraitCut(id=portrait.id, rgb=rgb, still=still.astype(np.uint8, copy=False))


def _encode(portrait: Portrait, size: FrameSize | None) -> bytes:
    source = portrait.source
    shown = size or FrameSize(height_px=source.height_px, width_px=source.width_px)
    out = io.BytesIO()
    Image.fromarray(_cut(portrait, shown).rgb).save(out, format="PNG")
    return out.getvalue()
