"""Times the windows of a warm model, the way streams will ask for them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from pipeline.api import StreamParams
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.worker.model import AvatarModel, StageMarks, WarmTimes

__all__ = ["time_windows"]

QUANTILE = 0.9


def time_windows(
    model: AvatarModel,
    *,
    num_warm: int,
    num_timed: int,
    longest_s: float,
    now_s: Callable[[], float] = time.perf_counter,
) -> WarmTimes:
    """Make windows of noise for a grey portrait, and time the last ones.

    Args:
        model: Set up as it is to be timed.
        num_warm: Windows made before, which do not count.
        num_timed: Windows timed.
        longest_s: After this time no window is timed but a first one; and where even getting there would take as long
            again, by the latest window, that one counts.
        now_s: The clock.

    Returns:
        90th percentiles over the timed windows.
    """
    grey = np.full((model.height_px, model.width_px, 3), 128, np.uint8)
    stream = model.open_stream(portrait=grey, prompt=None, seed=0, params=StreamParams())
    rng = np.random.default_rng(0)
    times: list[WarmTimes] = []
    begun = now_s()
    for window in range(num_warm + num_timed):
        if times and now_s() - begun > longest_s:
            # Cold windows tell nothing of warm ones, but there may be no time to get warm.
            rest_s = times[-1].window_s * (num_warm + 1 - window)
            if window > num_warm or rest_s > longest_s:
                break
        pcm = (2000 * rng.standard_normal(WINDOW_SAMPLES + model.right_context_samples)).astype(np.int16)
        started = now_s()
        batches = [
            (now_s() - started, len(pictures))
            for pictures in stream.generate(pcm, StageMarks(window=window), model.num_steps)
        ]
        times.append(WarmTimes.of_batches(batches))
    stream.close()
    timed = times[num_warm:] or times[-1:]
    return WarmTimes(
        window_s=float(np.quantile([each.window_s for each in timed], QUANTILE)),
        start_s=float(np.quantile([each.start_s for each in timed], QUANTILE)),
    )
