"""All sessions of one server: opened within a limit, found by name, closed together."""

import asyncio
import logging
import secrets
from dataclasses import dataclass

from pipeline.api import EngineInfo, StreamParams
from pipeline.host.stream import check_prompt
from server.clock import Clock
from server.config import ServerConfig
from server.control import Params
from server.engine import WatchedEngine
from server.errors import EngineNotReady, NotFound, SessionLimitReached
from server.metrics import Metrics
from server.pacing import choose_playout_delay_s
from server.peer import Peer
from server.portraits import FrameSize, PortraitCut, PortraitStore
from server.sdp import check_offer
from server.session import Session

__all__ = ["Opened", "Sessions"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a viewer gets for an offer."""

    session_id: str
    """Name of the session."""
    answer_sdp: str
    """The answer."""
    playout_delay_s: float
    """Capture of a sample to its release, constant within the session."""


class Sessions:
    """Opens and keeps sessions. Used on the loop only.

    Args:
        engine: Where streams come from.
        portraits: What they show.
        config: Limits and deadlines.
        clock: The clock of all sessions.
        metrics: Where they are counted.
    """

    def __init__(
        self,
        engine: WatchedEngine,
        portraits: PortraitStore,
        *,
        config: ServerConfig,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._portraits = portraits
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._sessions: dict[str, Session] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._num_opening = 0
        self._last_info: EngineInfo | None = None

    @property
    def num_active(self) -> int:
        """Sessions that are open or being opened."""
        return len(self._sessions) + self._num_opening

    @property
    def shown_portraits(self) -> set[str]:
        """Ids of the portraits that open sessions show."""
        return {session.portrait_id for session in self._sessions.values() if session.portrait_id is not None}

    @property
    def last_info(self) -> EngineInfo | None:
        """What the engine can do, as last known; None before it was ready once."""
        self._last_info = self._engine.info or self._last_info
        return self._last_info

    @property
    def frame_size(self) -> FrameSize | None:
        """Size of the engine's frame as last known; None before it was ready once."""
        info = self.last_info
        return None if info is None else FrameSize(height_px=info.height_px, width_px=info.width_px)

    def require_frame_size(self) -> FrameSize:
        """Size of the engine's frame.

        Returns:
            As last known.

        Raises:
            EngineNotReady: It is not known yet.
        """
        size = self.frame_size
        if size is None:
            raise EngineNotReady(self._engine.state)
        return size

    def check_room(self) -> None:
        """Say whether a session could be opened now.

        Raises:
            EngineNotReady: The engine takes no streams.
            SessionLimitReached: All sessions are taken.
        """
        self._require_info()
        if self.num_active >= self._config.max_sessions:
            raise SessionLimitReached(self._config.max_sessions)

    def get(self, session_id: str) -> Session:
        """A session by its name.

        Args:
            session_id: Untrusted.

        Returns:
            The session.

        Raises:
            NotFound: There is none of that name.
        """
        try:
            return self._sessions[session_id]
        except KeyError as exc:
            raise NotFound("session", session_id) from exc

    async def open(self, *, sdp: str, portrait_id: str | None, seed: int, params: Params) -> Opened:
        """Open a session for an offer. Cancellation leaves nothing behind.

        Args:
            sdp: The offer, untrusted.
            portrait_id: What to show; None takes the first portrait.
            seed: Seed of its streams.
            params: First parameters; what is left out has its default.

        Returns:
            The answer, and the name of the session.

        Raises:
            AvatarError: The offer, the portrait or the lack of room, as one of the errors of errors.py.
        """
        check_offer(sdp)
        self.check_room()
        self._num_opening += 1
        try:
            return await self._open(sdp, portrait_id, seed, params)
        finally:
            self._num_opening -= 1
            self._metrics.sessions.set(len(self._sessions))

    async def close(self, session_id: str) -> None:
        """End a session and wait until its place is free.

        Args:
            session_id: Untrusted.

        Raises:
            NotFound: There is none of that name.
        """
        self.get(session_id).close()
        await asyncio.wait([self._tasks[session_id]])

    async def aclose(self) -> None:
        """End all sessions and wait for them; a second call does nothing."""
        for session in self._sessions.values():
            session.close()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def check_params(self, params: Params) -> None:
        """Say whether the engine knows what to do with these parameters.

        Args:
            params: Of a session that is open, so that the engine was ready once.

        Raises:
            ConfigError: A prompt for an engine that takes none.
        """
        info = self.last_info
        if info is not None:
            check_prompt(params.prompt, info)

    async def load_portrait(self, portrait_id: str) -> PortraitCut:
        """Cut a portrait for the engine as it is now.

        Args:
            portrait_id: Untrusted.

        Returns:
            The cut.

        Raises:
            NotFound: There is none of that id.
            EngineNotReady: The size of its frame is not known yet.
        """
        return await self._portraits.cut(portrait_id, self.require_frame_size())

    async def _open(self, sdp: str, portrait_id: str | None, seed: int, params: Params) -> Opened:
        info = self._require_info()
        chosen = portrait_id or self._portraits.default_id
        session = Session(
            session_id=f"s-{secrets.token_hex(16)}",
            engine=self._engine,
            config=self._config.session,
            clock=self._clock,
            metrics=self._metrics,
            playout_delay_s=self._playout_delay_s(info),
            seed=seed,
            params=params.apply_to(StreamParams()),
            portrait=None if chosen is None else await self.load_portrait(chosen),
            shows_portrait=info.accepts_portrait,
            load_portrait=self.load_portrait,
        )
        peer = await Peer.accept(
            sdp,
            ice_servers=self._config.ice_servers,
            config=self._config.session,
            video=session.video,
            audio=session.audio,
            sink=session.microphone.receive,
        )
        try:
            await session.open()
        except BaseException:
            await peer.aclose()
            raise
        self._sessions[session.id] = session
        task = asyncio.create_task(self._run(session, peer), name=session.id)
        self._tasks[session.id] = task
        return Opened(session_id=session.id, answer_sdp=peer.answer_sdp, playout_delay_s=session.playout_delay_s)

    async def _run(self, session: Session, peer: Peer) -> None:
        try:
            await session.run(peer)
        except Exception:
            # The root of a session's tasks: one session may fail, the others and the server go on.
            logger.exception("a session failed", extra={"session_id": session.id})
        finally:
            del self._sessions[session.id]
            del self._tasks[session.id]
            self._metrics.sessions.set(len(self._sessions))

    def _playout_delay_s(self, info: EngineInfo) -> float:
        # Streams share the worker, so in the worst case a window waits for one window of every other stream.
        num_sharing = min(self._config.max_sessions, info.max_streams)
        session = self._config.session
        return choose_playout_delay_s(
            right_context_s=info.right_context_s,
            compute_s=info.warm_window_s * (num_sharing - 1) + info.warm_start_s,
            margin_s=session.margin_s,
            budget_s=session.budget_s,
            guard_s=session.guard_s,
        )

    def _require_info(self) -> EngineInfo:
        info = self._engine.info
        if info is None:
            raise EngineNotReady(self._engine.state)
        return info
