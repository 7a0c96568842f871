"""When an utterance begins, and when the first frame shows it: pure.

An utterance is sound after half a second of silence.
"""

from pipeline.geometry import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from server.microphone import Chunk
from server.sound import level_dbfs

__all__ = ["Onset"]

_PAUSE_SAMPLES = SAMPLE_RATE_HZ // 2


class Onset:
    """Measures the time to first frame of every utterance of a session.

    Args:
        quiet_dbfs: Level below which sound counts as silence.
    """

    def __init__(self, quiet_dbfs: float) -> None:
        self._quiet_dbfs = quiet_dbfs
        self._quiet_samples = 0
        self._begun: tuple[int, float] | None = None

    def hear(self, chunk: Chunk, now_s: float) -> None:
        """Take in the next sound.

        Args:
            chunk: It joins the one before.
            now_s: When it was received.
        """
        if level_dbfs(chunk.pcm) < self._quiet_dbfs:
            self._quiet_samples += len(chunk.pcm)
            return
        if self._quiet_samples >= _PAUSE_SAMPLES:
            self._begun = (chunk.position // SAMPLES_PER_FRAME, now_s)
        self._quiet_samples = 0

    def show(self, frame: int, now_s: float) -> float | None:
        """Note that a fresh frame was handed over.

        Args:
            frame: Its index in media time.
            now_s: When.

        Returns:
            Seconds from the first sound of the utterance to this frame if it is the first that shows it, else None.
        """
        if self._begun is None or frame < self._begun[0]:
            return None
        begun_s = self._begun[1]
        self._begun = None
        return now_s - begun_s
