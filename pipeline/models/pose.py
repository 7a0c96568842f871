"""A pose video: somebody else's movement for the avatar, from a film to latents, block by block.

The published model takes its pose clip by clip. Every clip is a video of its own, with its first picture once more in
front; the latent frame of that picture is dropped. Behind the end of the film the pose is black, as it was in training.
Here the pictures of a block are encoded when they are needed and decoded from the file one block ahead, so that a film
of any length takes the memory of two blocks. Where blocks are skipped, what follows them begins as a clip does.

Shape letters: B batch, C channels, T latent frames, F frames, H and W rows and columns of pictures, h and w of latents.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.geometry import BLOCKS_PER_CLIP, FRAMES_PER_BLOCK, place_cover, place_exact
from pipeline.media import VideoFile
from pipeline.models.wan_vae import WanVAE
from pipeline.portrait import PortraitSource

__all__ = ["PoseStream"]


class PoseStream:
    """The pose of one stream. Close it, or use it in a `with`.

    Args:
        vae: The network that encodes.
        path: The film; of any rate and size.
        height_px: Height of the frames.
        width_px: Width of the frames.
        is_exact: Whether the film is fitted to the frames as the published code does it, with black edges, and its
            pictures are counted as there; otherwise it covers them, and keeps its speed.
        loops: Whether the film begins again when it ends.

    Raises:
        MediaError: The film cannot be used.
    """

    def __init__(
        self, vae: WanVAE, path: Path, *, height_px: int, width_px: int, is_exact: bool = False, loops: bool = False
    ) -> None:
        self._vae = vae
        self._black_FHWC = np.zeros((FRAMES_PER_BLOCK, height_px, width_px, 3), np.uint8)
        self._film = _Film(path, height_px=height_px, width_px=width_px, is_exact=is_exact, loops=loops)
        self._state = vae.new_encoder_state()
        self._num_blocks = 0
        self._is_black_clip = False
        self._black_blocks: list[Tensor] = []
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="pose")
        self._pictures = self._reader.submit(self._film.next_block)
        try:
            self._pictures.result()
        except BaseException:
            self.close()
            raise

    def next_block(self) -> Tensor:
        """Encode the pose of the next block.

        Returns:
            Latents as `DiT.condition` takes them, float32, (1, C, 3, h, w).

        Raises:
            MediaError: The film is damaged here.
        """
        pictures_FHWC = self._pictures.result()
        self._pictures = self._reader.submit(self._film.next_block)
        place = self._num_blocks % BLOCKS_PER_CLIP
        self._num_blocks += 1
        if place == 0:
            self._state = self._vae.new_encoder_state()
            self._is_black_clip = pictures_FHWC is None
        if self._is_black_clip and place < len(self._black_blocks):
            return self._black_blocks[place]
        latents_BCThw = self._encode(self._black_FHWC if pictures_FHWC is None else pictures_FHWC)
        if self._is_black_clip:
            self._black_blocks.append(latents_BCThw)
        return latents_BCThw

    def skip_block(self) -> None:
        """Let the pose of the next block go by: nothing is encoded, and the file is waited for by `next_block` only."""
        self._num_blocks += 1
        self._pictures = self._reader.submit(self._read_after, self._pictures, self._num_blocks)
        self._state = self._vae.new_encoder_state()
        self._is_black_clip = False
        if len(self._black_blocks) < BLOCKS_PER_CLIP:
            self._black_blocks.clear()

    def close(self) -> None:
        """Close the film, after the block that is being read at most; a second call does nothing."""
        self._reader.shutdown(cancel_futures=True)
        self._film.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _read_after(self, skipped: Future[NDArray[np.uint8] | None], block: int) -> NDArray[np.uint8] | None:
        """Read on, unless the film was found damaged before. There is one thread, so `skipped` is read."""
        skipped.result()
        if block == self._num_blocks:
            return self._film.next_block()
        # It has been skipped itself by now.
        self._film.pass_block()
        return None

    def _encode(self, pictures_FHWC: NDArray[np.uint8]) -> Tensor:
        """Continue the clip, or begin one."""
        device = self._vae.conv1.weight.device
        frames_BFCHW = torch.from_numpy(pictures_FHWC).to(device).movedim(-1, 1)[None].float() / 127.5 - 1
        if self._state.has_begun:
            return self._vae.encode(frames_BFCHW, self._state)
        return self._vae.encode(torch.cat([frames_BFCHW[:, :1], frames_BFCHW], 1), self._state)[:, :, 1:]


class _Film:
    """The pictures of a film, fitted to the frame, a block at a time. Runs in a thread of its own."""

    def __init__(self, path: Path, *, height_px: int, width_px: int, is_exact: bool, loops: bool) -> None:
        self._path = path
        self._sides = {"height_px": height_px, "width_px": width_px}
        self._is_exact = is_exact
        self._loops = loops
        self._frames = self._read()

    def next_block(self) -> NDArray[np.uint8] | None:
        """Read on: (F, H, W, 3), black from the end of the film on; None if nothing is left."""
        frames = [self._fit(picture) for picture in islice(self._frames, FRAMES_PER_BLOCK)]
        if not frames:
            return None
        black = np.zeros_like(frames[0])
        return np.stack(frames + [black] * (FRAMES_PER_BLOCK - len(frames)))

    def pass_block(self) -> None:
        """Read on, and fit nothing."""
        for _ in islice(self._frames, FRAMES_PER_BLOCK):
            pass

    def close(self) -> None:
        """Close the file."""
        self._frames.close()

    def _read(self) -> Generator[NDArray[np.uint8], None, None]:
        is_first = True
        while is_first or self._loops:
            is_first = False
            with VideoFile(self._path) as file:
                yield from file.counted_pictures() if self._is_exact else file.pictures()

    def _fit(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height_px, width_px, _ = picture.shape
        source = PortraitSource(Image.fromarray(picture), width_px=width_px, height_px=height_px)
        place = place_exact if self._is_exact else place_cover
        return source.place(place(height_px, width_px, **self._sides))
