"""The worker process, from its first word to its last.

Order: say hello, receive the configuration, load and warm the model, say ready, serve streams (loop.py). The process
ends with status 0 when it is told to shut down or the server is gone, 1 when it failed (after a `Failed` message).
It has no working directory to rely on and reads no environment variable of ours. Its stdin ends when the server does.

Signals: the interrupt key and SIGTERM are the server's business and ignored here; a server that is gone ends the
worker by hanging up. SIGUSR1 writes the stacks of all threads to stderr, which the server puts into its log.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.api import EngineInfo
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.geometry import SAMPLE_RATE_HZ
from pipeline.host.messages import PROTOCOL_VERSION, Configure, Failed, Hello, Ready
from pipeline.worker.link import LinkHandler, ParentLost, WorkerLink, watch_parent
from pipeline.worker.loop import WorkerLoop
from pipeline.worker.model import AvatarModel, WarmTimes, WholeListenerModel, load_model

__all__ = ["main"]

_PARENT_GRACE_S = 2.0
_PERMANENT_ERRORS = (ConfigError, WeightsError, ImportError)

_logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker.

    Args:
        arguments: Command line without the program's name; None takes that of the process.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="pipeline.worker", description="Started by the server, not by hand.")
    parser.add_argument("--name", required=True, help="what process listings show")
    parser.add_argument("--control-fd", type=int, required=True, help="socket to the server")
    parser.add_argument("--ring-fd", type=int, required=True, help="file of the frame ring")
    options = parser.parse_args(arguments)
    _set_up_process(options.name)
    control = socket.socket(fileno=options.control_fd)
    watch_parent(sys.stdin.fileno(), grace_s=_PARENT_GRACE_S)
    link = WorkerLink(control)
    try:
        return _serve(link, ring_fd=options.ring_fd)
    except ParentLost:
        return 0
    except Exception as exc:  # noqa: BLE001 - worker main: the last place that can tell the server what went wrong
        with suppress(ParentLost):
            _tell_failed(link, exc)
        return 1


def _serve(link: WorkerLink, *, ring_fd: int) -> int:
    link.send(Hello(pid=os.getpid(), protocol_version=PROTOCOL_VERSION))
    configure = _wait_for_configuration(link)
    config = EngineConfig.model_validate_json(configure.config_json)
    _set_up_logging(link, configure.log_level)
    model = load_model(config)
    info = _describe(model, warm=model.warm_up(), max_streams=config.max_streams)
    # What was made so far stays for good; the collector would look through all of it, for 100 ms, in mid-stream.
    gc.collect()
    gc.freeze()
    link.send(Ready(info=info))
    WorkerLoop(link, model=model, info=info, config=config, ring_fd=ring_fd).run()
    return 0


def _set_up_process(name: str) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    faulthandler.enable(sys.stderr, all_threads=True)
    faulthandler.register(signal.SIGUSR1, sys.stderr, all_threads=True)
    with suppress(OSError):  # Only Linux has it, and it is for people only.
        Path("/proc/self/comm").write_text(name[:15], encoding="ascii")


def _set_up_logging(link: WorkerLink, level: int) -> None:
    logging.captureWarnings(True)
    logging.getLogger().setLevel(level)
    logging.getLogger().addHandler(LinkHandler(link))


def _wait_for_configuration(link: WorkerLink) -> Configure:
    while True:
        for message in link.poll(timeout_s=1.0):
            assert isinstance(message, Configure), message
            return message


def _describe(model: AvatarModel, *, warm: WarmTimes, max_streams: int) -> EngineInfo:
    listener = model if isinstance(model, WholeListenerModel) else None
    return EngineInfo(
        name=model.name,
        height_px=model.height_px,
        width_px=model.width_px,
        num_steps=model.num_steps,
        right_context_s=model.right_context_samples / SAMPLE_RATE_HZ,
        warm_window_s=warm.window_s,
        warm_start_s=warm.start_s,
        max_streams=max_streams,
        accepts_prompt=model.accepts_prompt,
        accepts_portrait=model.accepts_portrait,
        notes=model.notes,
        longest_whole_s=0.0 if listener is None else listener.longest_whole_s,
        px_per_token=0 if listener is None else listener.px_per_token,
    )


def _tell_failed(link: WorkerLink, exc: Exception) -> None:
    link.send(
        Failed(
            error=type(exc).__name__,
            text=str(exc),
            traceback="".join(traceback.format_exception(exc)),
            is_permanent=isinstance(exc, _PERMANENT_ERRORS),
        )
    )
