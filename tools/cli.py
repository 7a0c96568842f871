"""The command line: `visavis serve`, `visavis render`, `visavis bench`, `visavis weights`.

Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 130 interrupted. A failure is one line on stderr; `--verbose`
adds the traceback. Commands import what they need when they run, so that `--help` is quick and never loads torch.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import AvatarError, ConfigError, MediaError
from pipeline.worker.threads import share_cores

if TYPE_CHECKING:
    from rich.console import Console

    from server.config import AppConfig
    from tools.render import Prepared, RenderSummary

__all__ = ["app", "main"]

app = typer.Typer(
    name="visavis",
    help="A real-time streaming avatar: speak, and a portrait speaks it back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure this machine and these weights.", no_args_is_help=True)
app.add_typer(bench, name="bench")
weights = typer.Typer(help="The large engine's weights.", no_args_is_help=True)
app.add_typer(weights, name="weights")

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


class EngineName(StrEnum):
    """Engines that can be chosen."""

    EMBEDDED = "embedded"
    LARGE = "large"
    PATTERN = "pattern"


class FitName(StrEnum):
    """Ways in which a portrait fills the frame."""

    FACE = "face"
    COVER = "cover"
    EXACT = "exact"


EngineOption = Annotated[
    EngineName | None,
    typer.Option("--engine", help="The avatar that ships with visavis, the large one (14B), or a test picture."),
]
WeightsOption = Annotated[Path | None, typer.Option("--weights", metavar="DIR", help="The large engine's weights.")]
RandomWeightsOption = Annotated[
    bool,
    typer.Option("--random-weights", help="For benchmarks: the large engine with weights that have learnt nothing."),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML file with differences from configs/default.yaml.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, like engine.threads=4. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def _common(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks and the log.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    context.obj = verbose
    if version:
        typer.echo(f"visavis {importlib.metadata.version('visavis')}")
        raise typer.Exit


# `visavis --version` has no command: the callback runs for it too.
app.registered_callback.invoke_without_command = True  # type: ignore[union-attr]


@contextmanager
def _reported(context: typer.Context) -> Iterator[None]:
    """Turn failures into one line and an exit code; show the log to who asked for it."""
    logging.basicConfig(level=logging.INFO if context.obj else logging.CRITICAL, stream=sys.stderr)
    try:
        yield
    except KeyboardInterrupt as exc:
        typer.echo("visavis: interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from exc
    except (AvatarError, OSError) as exc:
        if context.obj:
            raise
        typer.echo(f"visavis: {_sentence(exc)}", err=True)
        is_bad_input = isinstance(exc, ConfigError | MediaError)
        raise typer.Exit(EXIT_BAD_INPUT if is_bad_input else EXIT_FAILED) from exc


def _sentence(exc: AvatarError | OSError) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror.lower()}" if exc.filename else exc.strerror.lower()
    return str(exc)


def _assignments(values: list[str] | None, **overrides: object) -> list[str]:
    """Return the `--set` assignments and the options that are short for one; the options win."""
    short = [
        f"{key.replace('__', '.')}={json.dumps(str(value))}" for key, value in overrides.items() if value is not None
    ]
    return [*(values or []), *short]


def _weights(weights: Path | None, random_weights: bool) -> list[str]:
    """Return the assignments of the options for weights, with a warning that nobody overlooks."""
    if random_weights:
        typer.secho("random weights: this engine has learnt nothing, its pictures mean nothing", fg="red", err=True)
    given = [] if weights is None else [f"engine.weights_dir={json.dumps(str(weights.absolute()))}"]
    return given + (["engine.large.random_weights=true"] if random_weights else [])


def _load(config: Path | None, assignments: list[str]) -> AppConfig:
    from server.config import load_config

    return load_config(config, assignments=assignments)


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = None,
    engine: EngineOption = None,
    weights: WeightsOption = None,
    random_weights: RandomWeightsOption = False,
    prompt: Annotated[str | None, typer.Option(help="Text prompt of every session (large engine).")] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Serve the page, and avatars to whoever opens it."""
    with _reported(context):
        overrides = _assignments(assignments, engine__name=engine, engine__large__prompt=prompt)
        overrides += _weights(weights, random_weights)
        if host is not None:
            overrides.append(f"server.host={json.dumps(host)}")
        if port is not None:
            overrides.append(f"server.port={port}")
        settings = _load(config, overrides)
        if prompt is not None and settings.engine.name != "large":
            raise ConfigError("--prompt", prompt, "only the large engine reads a prompt")
        from server.main import run

        raise typer.Exit(run(settings, announce=typer.echo))


@app.command()
def render(
    context: typer.Context,
    image: Annotated[str, typer.Option(help="Portrait: an image file, or the name of a default portrait.")],
    audio: Annotated[list[Path], typer.Option(help="Sound: any file that contains some. One per speaker.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .mp4 to write.")],
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Size that the movie has to have, in pixels.")] = None,
    fit: Annotated[
        FitName | None,
        typer.Option(
            help="Show the face, the whole picture (default of the large engine), or do as the published code: black "
            "edges, and rotation, colour profile and transparency of the file left out."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps per block.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same movie, at the same precision.")] = 0,
    clips: Annotated[int | None, typer.Option(min=1, help="Make only so many clips of 48 frames.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text prompt (large engine).")] = None,
    pose: Annotated[Path | None, typer.Option(help="Film whose movement is followed (large engine).")] = None,
    speaker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BOX|FILE",
            help="Where each of several speakers is: left,upper,right,lower (pixels, or parts of 1), or a mask.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    engine: EngineOption = None,
    weights: WeightsOption = None,
    random_weights: RandomWeightsOption = False,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Make a movie: a portrait that speaks a sound file."""
    with _reported(context):
        from tools.render import RenderJob, parse_size, prepare

        # The prompt is the engine's own, too: it is then read once, before the other networks take their memory.
        overrides = _assignments(assignments, engine__name=engine, engine__large__prompt=prompt)
        overrides += _weights(weights, random_weights)
        if steps is not None:
            overrides.append(f"engine.num_steps={steps}")
        # A movie that fails is started again by whoever wants it; and it may take its time.
        overrides += ["engine.max_restarts=0", "engine.keeps_pace=false"]
        if pose is not None:
            overrides.append(f"engine.large.pose_video={json.dumps(str(pose.absolute()))}")
        if fit is FitName.EXACT:
            overrides.append("engine.large.pose_is_exact=true")
        settings = _load(config, overrides)
        name = settings.engine.name
        job = RenderJob(
            image=image,
            audio=audio[0],
            more_audio=tuple(audio[1:]),
            regions=tuple(speaker or ()),
            output=output,
            size=None if size is None else parse_size(size),
            fit=fit.value if fit is not None else "cover" if name == "large" else "face",
            seed=seed,
            num_clips=clips,
            prompt=prompt,
            pose=pose,
            is_overwriting=force,
        )
        prepared = prepare(job, settings.engine)
        if name != "embedded":
            sides = (f"engine.{name}.height_px={prepared.height_px}", f"engine.{name}.width_px={prepared.width_px}")
            settings = _load(config, [*overrides, *sides])
        summary = asyncio.run(_render(prepared, settings))
        if not summary.is_face_found:
            typer.echo(f"no face was found in {image}: the upper middle of the image is shown", err=True)
        for note in summary.notes:
            typer.echo(note, err=True)
        picture = f"{summary.width_px}x{summary.height_px}"
        typer.echo(f"{output}: {summary.duration_s:.2f} s, {summary.num_frames} frames of {picture}")


async def _render(prepared: Prepared, settings: AppConfig) -> RenderSummary:
    """Start the engine, render with a progress bar, stop the engine."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline.host.engine import WorkerEngine
    from tools.render import render as render_movie

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    engine = WorkerEngine(settings.engine)
    console = Console(stderr=True)
    is_hidden = not console.is_terminal  # a file would get an empty line
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        task = progress.add_task("starting the engine", total=None)
        engine.start()
        try:
            info = await engine.wait_ready()
            progress.update(task, description="rendering frames")
            report: Callable[[int, int | None], None] = lambda done, total: progress.update(  # noqa: E731
                task, completed=done, total=total
            )
            return await render_movie(engine, info, prepared, report)
        finally:
            prepared.sound.close()
            await engine.aclose()


@bench.command("embedded")
def bench_embedded(
    context: typer.Context,
    windows: Annotated[int, typer.Option(min=10, help="Windows to measure, per precision.")] = 60,
    engine: EngineOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time of a window by stage, fp32 and bf16."""
    with _reported(context):
        settings = _load(config, _assignments(assignments, engine__name=engine))
        share_cores()
        from tools.bench.embedded import run, show

        _print(run(settings.engine, num_windows=windows), show, as_json)


@bench.command("large")
def bench_large(
    context: typer.Context,
    windows: Annotated[int, typer.Option(min=10, help="Windows to measure.")] = 100,
    weights: WeightsOption = None,
    random_weights: RandomWeightsOption = False,
    config: ConfigOption = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load time, memory, stages and rounding of the large engine."""
    with _reported(context):
        overrides = _assignments(assignments, engine__name=EngineName.LARGE) + _weights(weights, random_weights)
        settings = _load(config, overrides)
        share_cores()
        from tools.bench.large import run, show

        _print(run(settings.engine, num_windows=windows), show, as_json)


@bench.command("live")
def bench_live(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=2, help="Length of the session.")] = 120.0,
    audio: Annotated[Path | None, typer.Option(help="What is said; the shipped sample when left out.")] = None,
    engine: EngineOption = None,
    weights: WeightsOption = None,
    random_weights: RandomWeightsOption = False,
    config: ConfigOption = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Latency and losses of a live session with a server of its own."""
    with _reported(context):
        overrides = _assignments(assignments, engine__name=engine) + _weights(weights, random_weights)
        settings = _load(config, overrides)
        from tools.bench.live import run, show

        arguments = [] if config is None else ["--config", str(config)]
        for override in overrides:
            arguments += ["--set", override]
        ready_s = settings.engine.hello_timeout_s + settings.engine.ready_timeout_s
        _print(run(arguments, seconds=seconds, audio=audio, ready_timeout_s=ready_s), show, as_json)


@bench.command("quality")
def bench_quality(
    context: typer.Context,
    people: Annotated[int, typer.Option(min=1, help="Held-out people who speak.")] = 6,
    ceiling_people: Annotated[int, typer.Option(min=0, help="People drawn with the labels' mouth; needs EGL.")] = 1,
    vae_people: Annotated[int, typer.Option(min=0, help="People for the PSNR; needs EGL.")] = 8,
    drift_s: Annotated[float, typer.Option(min=4, help="Length of the stream that is watched for drift.")] = 300.0,
    movies: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep what was measured, for looking.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the figures as JSON, too.")] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lip sync, rest, identity and picture quality on held-out people and speech (minutes)."""
    with _reported(context):
        settings = _load(config, assignments or [])
        from tools.bench.quality import Plan, run, show

        plan = Plan(
            num_people=people,
            num_ceiling_people=ceiling_people,
            num_vae_people=vae_people,
            drift_s=drift_s,
            movies_dir=movies,
        )
        report = run(settings.engine, plan, report=lambda text: typer.echo(text, err=True))
        if output is not None:
            output.write_text(json.dumps(report, indent=2) + "\n")
        _print(report, show, as_json)


@bench.command("audio")
def bench_audio(
    context: typer.Context,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The large engine's weights, or their wav2vec2 folder.")
    ] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Weights that have learnt nothing.")] = False,
    audio: Annotated[Path | None, typer.Option(help="Speech; the shipped sample when left out.")] = None,
    left_ms: Annotated[list[int] | None, typer.Option(help="Sound before a window. Repeatable.")] = None,
    right_ms: Annotated[
        list[int] | None, typer.Option(help="Sound after a window, which is delay. Repeatable.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows to compare.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """How far the large engine's live audio features are from those of the whole file, by context."""
    with _reported(context):
        if (weights is None) != random_weights:
            rule = "either it or --random-weights has to be given"
            raise ConfigError("--weights", None if weights is None else str(weights), rule)
        from tools.bench.audio import Plan, load_network, random_network, run, show

        plan = Plan(num_windows=windows)
        if left_ms:
            plan = replace(plan, left_ms=left_ms)
        if right_ms:
            plan = replace(plan, right_ms=right_ms)
        network = random_network() if weights is None else load_network(weights)
        report = run(
            network, plan, is_random=random_weights, audio=audio, report=lambda text: typer.echo(text, err=True)
        )
        _print(report, show, as_json)


@weights.command("check")
def weights_check(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Holds Wan2.2-S2V-14B/ and LiveAvatar/.")],
    as_json: JsonOption = False,
) -> None:
    """Name every missing, extra or mis-shaped tensor of a folder, without loading it."""
    with _reported(context):
        from tools.weights import check, show

        report = check(folder)
        _print(report, show, as_json)
    if not report["is_whole"]:
        raise typer.Exit(EXIT_FAILED)


@weights.command("pull")
def weights_pull(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the weights go; what is there is kept.")],
) -> None:
    """Fetch the published weights (47 GB) from the Hugging Face Hub, or from the mirror that HF_ENDPOINT names."""
    with _reported(context):
        from rich.console import Console

        from tools.weights import fetch

        fetch(folder, Console(stderr=True), announce=typer.echo)


def _print(report: dict[str, Any], show: Callable[[dict[str, Any], Console], None], as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        show(report, Console())


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
