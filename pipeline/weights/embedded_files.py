"""The embedded avatar's files: found, checked against their manifest, and loaded.

A folder holds `manifest.json` (format, and the SHA-256 of every file) and one safetensors file per network, with the
network's sizes in its header; stored in float16, computed with in float32 or bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from pipeline.errors import WeightsError
from pipeline.models.audio_frontend import AudioFrontend
from pipeline.models.dit import DiT
from pipeline.models.dit_config import DiTConfig
from pipeline.models.embedded_vae import EmbeddedVAE, EmbeddedVAEConfig

__all__ = ["DEFAULT_FOLDER", "EmbeddedFiles", "load_network", "write_manifest"]

DEFAULT_FOLDER = Path(__file__).parent / "embedded"
FORMAT = 1
NETWORKS = ("vae", "dit", "frontend")

Network = TypeVar("Network", bound=nn.Module)


class EmbeddedFiles:
    """One folder of weights.

    Args:
        folder: The folder; None for the weights that ship with visavis.

    Raises:
        WeightsError: There is no readable manifest of a known format.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or DEFAULT_FOLDER
        path = self.folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError) as exc:
            raise WeightsError(str(path), f"the manifest cannot be read ({exc})") from exc
        given = manifest.get("format") if isinstance(manifest, dict) else None
        if given != FORMAT:
            raise WeightsError(str(path), f"format {given!r} is not {FORMAT}")
        if not isinstance(manifest.get("sha256"), dict):
            raise WeightsError(str(path), "it names no files under sha256")
        self._digests: dict[str, Any] = manifest["sha256"]

    def load_vae(self) -> EmbeddedVAE:
        """Load the video VAE.

        Returns:
            The network, ready for use.

        Raises:
            WeightsError: The file is missing, was changed, or does not fit the sizes in its header.
        """
        return self._load("vae", lambda sizes: EmbeddedVAE(EmbeddedVAEConfig(**sizes)))

    def load_dit(self) -> DiT:
        """Load the transformer.

        Returns:
            The network, ready for use.

        Raises:
            WeightsError: As in `load_vae`.
        """
        return self._load("dit", lambda sizes: DiT(DiTConfig(**sizes)))

    def load_frontend(self) -> AudioFrontend:
        """Load the audio front end.

        Returns:
            The network, ready for use.

        Raises:
            WeightsError: As in `load_vae`.
        """
        path = self.folder / "frontend.safetensors"
        self._read(path)
        return AudioFrontend.load(path)

    def _load(self, name: str, build: Callable[[dict[str, Any]], Network]) -> Network:
        path = self.folder / f"{name}.safetensors"
        return load_network(path, self._read(path), build)

    def _read(self, path: Path) -> bytes:
        """Read a file that the manifest names."""
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise WeightsError(str(path), f"cannot be read ({exc.strerror})") from exc
        if hashlib.sha256(data).hexdigest() != self._digests.get(path.name):
            raise WeightsError(str(path), "damaged: its SHA-256 is not the one in manifest.json")
        return data


def load_network(path: Path, data: bytes, build: Callable[[dict[str, Any]], Network]) -> Network:
    """Make a network of the sizes in a weight file's header, and load the weights.

    Args:
        path: The file, for messages.
        data: Its content: safetensors whose metadata holds the sizes as JSON under `config`.
        build: Makes the network from its sizes.

    Returns:
        The network, float32, in evaluation mode and without gradients.

    Raises:
        WeightsError: The content is no such file, or the weights do not fit the sizes.
    """
    try:
        (header_bytes,) = struct.unpack_from("<Q", data)
        sizes = json.loads(json.loads(data[8 : 8 + header_bytes])["__metadata__"]["config"])
        network = build({name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()})
        state = {k: v.float() if v.is_floating_point() else v for k, v in load(data).items()}
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError, struct.error, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise WeightsError(str(path), f"does not fit the network ({exc})") from exc
    return network.eval().requires_grad_(False)


def write_manifest(folder: Path) -> None:
    """Write the manifest of the weight files that lie in a folder.

    Args:
        folder: With one file per network.
    """
    files = [folder / f"{name}.safetensors" for name in NETWORKS]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": digests}, indent=2) + "\n")
