"""The page against the real server: what a person sees and hears in the first minute, and when things go wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from server.config import ServerConfig, SessionConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from playwright.sync_api import Browser, Route

    from tests.e2e.conftest import Server, Visitor

    Visit = Callable[..., Visitor]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PICTURE = """() => {
  const quality = document.querySelector("#video").getVideoPlaybackQuality();
  const {videoWidth, videoHeight, currentTime, paused, muted} = document.querySelector("#video");
  return {width: videoWidth, height: videoHeight, time: currentTime, paused, muted, frames: quality.totalVideoFrames};
}"""

CHANGE_WHILE_CONNECTING = """() => {
  const stage = document.querySelector("#stage");
  new MutationObserver((_, observer) => {
    if (stage.dataset.phase !== "connecting") return;
    observer.disconnect();
    document.querySelector("#liveliness").value = "1.7";
    document.querySelector(".tile input:not(:checked)").click();
  }).observe(stage, {attributes: true, attributeFilter: ["data-phase"]});
}"""

SIZE = (32, 48)
"""The size at which the picture is looked at."""
KEPT_UPLOADS = ServerConfig().max_uploads_per_visitor
FACE = Path(__file__).parents[1] / "data" / "face.png"


def upload(visitor: Visitor, path: Path) -> None:
    """Upload a picture; where no face was found, take the frame as it lies."""
    visitor.page.click("#upload")
    visitor.page.set_input_files("#upload-file", path)
    visitor.page.wait_for_selector("#upload-dialog[data-step=crop], #upload-dialog:not([open])", state="attached")
    if visitor.page.locator("#upload-dialog[open]").count():
        visitor.page.click("#crop-use")
    visitor.page.wait_for_selector("#upload-dialog", state="hidden")


def picture(visitor: Visitor) -> dict[str, Any]:
    result: dict[str, Any] = visitor.page.evaluate(PICTURE)
    return result


def figure(visitor: Visitor, name: str) -> str:
    return visitor.page.inner_text(f"[data-figure={name}]")


def test_the_face_appears_and_plays(visit: Visit, server: Server) -> None:
    """One press of the button, and a picture of the engine's size plays with its sound on."""
    visitor = visit()
    visitor.start()
    before = picture(visitor)
    visitor.page.wait_for_timeout(3000)
    after = picture(visitor)
    engine = json.loads(server.get("api/info") or b"")["engine"]
    assert (after["width"], after["height"]) == (engine["width_px"], engine["height_px"])
    assert not after["paused"]
    assert not after["muted"]
    assert after["frames"] - before["frames"] >= 25, "less than a third of the frames of 3 s were shown"
    assert visitor.page.inner_text("#status-title") == "Live"


def test_the_avatar_is_heard_and_its_picture_follows_the_sound(visit: Visit) -> None:
    """The spoken file comes back with its pauses, and what moves in the picture moves with it, within two frames.

    After a stall of a loaded machine Chromium takes some seconds to bring the two together again, so it has three goes.
    """
    visitor = visit()
    visitor.page.fill("#liveliness", "0")  # The head holds still: what moves is the mouth.
    visitor.start()
    for _ in range(3):
        levels, pixels = visitor.sound_and_picture(seconds=14, size=SIZE)
        assert np.quantile(levels, 0.9) > 0.01, "hardly any sound arrived"
        assert np.quantile(levels, 0.05) < 0.3 * np.quantile(levels, 0.9), "the pauses of speech are missing"
        likeness = {lag: likeness_at(lag, np.sqrt(levels), pixels) for lag in range(-12, 13)}
        best = max(likeness, key=lambda lag: likeness[lag])
        assert likeness[best] > 0.3, f"nothing in the picture follows the sound: {likeness}"
        if abs(best) <= 2:
            break
    visitor.shoot("live")
    assert abs(best) <= 2, f"the picture is {best} frames behind the sound: {likeness}"


def likeness_at(lag: int, levels: NDArray[np.float64], pixels: NDArray[np.float64]) -> float:
    """Correlation of the sound's level with the pixels that follow it best, `lag` frames later (mean of best 20)."""
    num = len(levels) - abs(lag)
    sound = levels[max(0, -lag) :][:num]
    seen = pixels[max(0, lag) :][:num]
    seen = seen[:, seen.std(axis=0) > 2.0]
    if seen.shape[1] < 20:
        return 0.0
    sound = (sound - sound.mean()) / sound.std()
    seen = (seen - seen.mean(axis=0)) / seen.std(axis=0)
    return float(np.sort(np.abs(sound @ seen) / num)[-20:].mean())


def test_the_ledger_fills(visit: Visit, server: Server) -> None:
    """Figures and bars appear, and the stages of each window add up to its latency."""
    visitor = visit()
    visitor.start()
    window = visitor.wait_for_message(lambda message: message["type"] == "ledger")
    stages = window["stages_ms"]
    sum_ms = sum(sum(value) if isinstance(value, list) else value for value in stages.values())
    assert sum_ms == pytest.approx(window["latency_ms"], abs=1.0)
    visitor.wait_for_message(lambda message: message["type"] == "stats" and message["windows"] >= 4, limit_s=15)
    visitor.page.wait_for_timeout(300)
    for name in ("p50", "p95", "p99", "pace"):
        assert int(figure(visitor, name)) > 0
    assert figure(visitor, "underruns").isdigit()
    assert visitor.page.locator("#ledger.has-windows").count() == 1
    assert "median" in (visitor.page.get_attribute("#chart", "aria-label") or "")
    visitor.page.click("summary")
    visitor.page.wait_for_selector("#detail-rows:has-text('opus')", timeout=5000)


def test_another_face_can_be_chosen_while_speaking(visit: Visit) -> None:
    """A portrait is uploaded, cut and chosen during the conversation, and the server takes it."""
    visitor = visit()
    visitor.start()
    num_seen = len(visitor.received)
    upload(visitor, FACE)
    uploaded = visitor.page.input_value(".tile input:checked")
    assert uploaded.startswith("u-")
    visitor.wait_for_message(lambda message: message.get("portrait") == uploaded, num_seen=num_seen)
    request = next(message for message in visitor.sent if message["type"] == "set_portrait")
    visitor.wait_for_message(lambda message: message == {"type": "done", "id": request["id"]}, num_seen=num_seen)


def test_a_picture_that_made_room_for_others_is_sent_again_when_it_is_chosen(visit: Visit, server: Server) -> None:
    """The page shows as many of its pictures as the server keeps, and brings one back that others pushed out."""
    visitor = visit()
    for _ in range(KEPT_UPLOADS + 1):
        upload(visitor, FACE)
    own = ".tile input[value^=u-]"
    visitor.page.wait_for_function(f"document.querySelectorAll({own!r}).length === {KEPT_UPLOADS}")
    mine = visitor.page.input_value(f"{own} >> nth=0")
    visitor.page.click(".tile input[value=ada]", force=True)
    visitor.start()
    for _ in range(KEPT_UPLOADS):
        server.post("api/portraits", FACE.read_bytes(), "image/png")
    num_seen = len(visitor.received)
    visitor.page.click(f"{own} >> nth=0", force=True)
    visitor.wait_for_message(lambda message: message.get("code") == "not_found", num_seen=num_seen)
    visitor.wait_for_message(lambda message: (message.get("portrait") or "").startswith("u-"), num_seen=num_seen)
    again = visitor.page.input_value(".tile input:checked")
    assert again.startswith("u-")
    assert again != mine


def test_what_is_changed_while_the_page_connects_reaches_the_server(visit: Visit) -> None:
    """A face and a slider that are moved after the offer and before the control channel is open are not forgotten."""
    visitor = visit()
    upload(visitor, FACE)
    visitor.page.evaluate(CHANGE_WHILE_CONNECTING)
    visitor.start()
    chosen = visitor.page.input_value(".tile input:checked")
    assert not chosen.startswith("u-")
    visitor.wait_for_message(lambda message: message.get("portrait") == chosen, num_seen=0)
    assert visitor.received[0]["portrait"].startswith("u-"), "the change came before the offer"
    update = next(message for message in visitor.sent if message["type"] == "update")
    assert update["params"]["liveliness"] == 1.7
    visitor.wait_for_message(lambda message: message == {"type": "done", "id": update["id"]}, num_seen=0)


def test_the_frame_can_be_placed_where_no_face_is_found(visit: Visit, server: Server, tmp_path: Path) -> None:
    """The dialog asks for the place; dragging, zooming and keys move the frame, and the server cuts there."""
    path = tmp_path / "landscape.png"
    Image.fromarray(np.tile(np.linspace(0, 255, 900, dtype=np.uint8), (600, 1))).save(path)
    visitor = visit()
    visitor.page.click("#upload")
    visitor.page.set_input_files("#upload-file", path)
    visitor.page.wait_for_selector("#upload-dialog[data-step=crop]")
    assert "No face was found" in visitor.page.inner_text("#crop-text")
    before = visitor.page.locator("#crop-frame").bounding_box()
    visitor.page.fill("#crop-zoom", "2")
    visitor.page.focus("#crop-frame")
    for _ in range(60):
        visitor.page.keyboard.press("Shift+ArrowRight")
    after = visitor.page.locator("#crop-frame").bounding_box()
    area = visitor.page.locator("#crop-area").bounding_box()
    assert before is not None
    assert after is not None
    assert area is not None
    assert after["width"] == pytest.approx(before["width"] / 2, abs=2)
    assert after["x"] + after["width"] == pytest.approx(area["x"] + area["width"], abs=2)
    visitor.shoot("crop")
    visitor.page.click("#crop-use")
    visitor.page.wait_for_selector("#upload-dialog", state="hidden")
    png = server.get((visitor.page.get_attribute("#still", "src") or "").removeprefix("/"))
    red = np.asarray(Image.open(io.BytesIO(png or b"")).convert("RGB"))[:, :, 0]
    assert red[:, -1].mean() > 250, "the cut does not end at the right edge"
    assert red[:, 0].mean() > 180, "the cut is wider than the frame"


def test_an_interrupt_begins_a_new_epoch(visit: Visit) -> None:
    """The button drops what is under way: the next windows carry the next epoch."""
    visitor = visit()
    visitor.start()
    before = visitor.wait_for_message(lambda message: message["type"] == "ledger")
    visitor.page.click("#interrupt")
    visitor.wait_for_message(lambda message: message["type"] == "ledger" and message["epoch"] == before["epoch"] + 1)


def test_the_sliders_reach_the_server(visit: Visit) -> None:
    """Moving a slider sends both parameters, and the server answers."""
    visitor = visit()
    visitor.start()
    visitor.page.fill("#liveliness", "0.4")
    visitor.wait_for_message(lambda message: message["type"] == "done")
    update = next(message for message in visitor.sent if message["type"] == "update")
    assert update["params"] == {"liveliness": 0.4, "look_at_camera": 0.8}


def test_the_sample_voice_needs_no_microphone(visit: Visit) -> None:
    """The sample is spoken by the avatar, and the microphone can take over without a new session."""
    visitor = visit()
    visitor.page.click("#other")
    visitor.wait_for_picture()
    assert "sample" in visitor.page.inner_text("#status-title")
    levels, _ = visitor.sound_and_picture(seconds=4, size=SIZE)
    assert levels.max() > 0.01
    num_states = sum(message["type"] == "state" for message in visitor.received)
    visitor.page.click("#other")
    visitor.page.wait_for_selector("#status-title:text-is('Live')")
    assert sum(message["type"] == "state" for message in visitor.received) == num_states


def test_a_refused_microphone_is_explained(browser_without_microphone: Browser, visit: Visit) -> None:
    """The page says what happened and what to do, and the sample voice is one press away."""
    visitor = visit(browser_without_microphone)
    visitor.page.click("#main")
    visitor.page.wait_for_selector("#stage[data-phase=failed]")
    assert "microphone is blocked" in visitor.notice()
    assert "Allow it" in visitor.notice()
    assert "Allow it" in visitor.page.inner_text("#announce"), "a screen reader says only what happened"
    assert visitor.page.inner_text("#main") == "Try again"
    visitor.shoot("refused")
    visitor.page.click("#other")
    visitor.wait_for_picture()
    visitor.shoot("refused-then-sample")


def test_a_page_from_another_machine_says_how_to_get_the_microphone(visit: Visit, server: Server) -> None:
    """Plain http from elsewhere: the browser gives no microphone, the page names the ways out, and the sample works."""
    visitor = visit(host="another-machine.test")
    visitor.page.click("#main")
    visitor.page.wait_for_selector("#stage[data-phase=failed]")
    assert "https://" in visitor.notice()
    port = server.port
    assert f"ssh -L {port}:localhost:{port} another-machine.test" in visitor.notice()
    visitor.shoot("insecure")
    visitor.page.click("#other")
    visitor.wait_for_picture()


def test_a_full_server_is_waited_for(visit: Visit) -> None:
    """The second page counts down, and gets the place when the first page leaves."""
    first, second = visit(), visit()
    first.start()
    second.page.click("#main")
    second.page.wait_for_selector("#stage[data-phase=waiting]")
    assert "Every place is taken" in second.notice()
    assert "Trying again in" in second.notice()
    second.shoot("busy")
    first.page.click("#main")
    second.wait_for_picture()


def test_a_visitor_who_leaves_frees_the_place(visit: Visit, server: Server) -> None:
    """Closing the tab ends the session at once, without waiting for the connection to time out."""
    visitor = visit()
    visitor.start()
    visitor.page.goto("about:blank")
    server.wait_until_free(limit_s=SessionConfig().peer_silence_s / 2)


def test_the_page_survives_a_restart_of_the_server(visit: Visit, server: Server) -> None:
    """The server is killed and started again: the page says so, returns by itself, and brings its own portrait."""
    visitor = visit()
    upload(visitor, FACE)
    visitor.start()
    before = visitor.page.input_value(".tile input:checked")
    server.stop(is_kill=True)
    visitor.page.wait_for_selector("#stage[data-phase=waiting]", timeout=10_000)
    assert "Connection lost" in visitor.notice()
    visitor.shoot("lost")
    server.start()
    visitor.wait_for_picture(limit_s=45)
    after = visitor.page.input_value(".tile input:checked")
    assert after.startswith("u-")
    assert after != before
    frames = picture(visitor)["frames"]
    visitor.page.wait_for_timeout(2000)
    assert picture(visitor)["frames"] > frames


def test_a_file_that_is_no_picture_is_refused_in_words(visit: Visit, tmp_path: Path) -> None:
    """Text named as a picture, and a picture of the wrong kind, each get a sentence in the dialog."""
    visitor = visit()
    visitor.page.click("#upload")
    fake = tmp_path / "fake.png"
    fake.write_text("this is no picture")
    visitor.page.set_input_files("#upload-file", fake)
    visitor.page.wait_for_selector("#upload-say:has-text('cannot use this picture')")
    movie = tmp_path / "movie.gif"
    movie.write_bytes(b"GIF89a")
    visitor.page.set_input_files("#upload-file", movie)
    visitor.page.wait_for_selector("#upload-say:has-text('JPEG, PNG or WebP')")


def test_a_dialog_that_was_closed_forgets_the_picture_that_it_was_sending(visit: Visit) -> None:
    """The answer about it neither chooses a face nor closes the dialog that was opened anew."""
    visitor = visit()
    page = visitor.page
    held: list[Route] = []
    page.route("**/api/portraits", lambda route: held.append(route))  # Playwright looks into what it calls
    page.click("#upload")
    page.set_input_files("#upload-file", FACE)
    page.wait_for_selector("#upload-dialog[data-busy]")
    page.click("#upload-dialog [data-close] >> nth=0")
    page.click("#upload")
    with page.expect_response("**/api/portraits"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert page.locator("#upload-dialog[open]").count() == 1
    assert not page.input_value(".tile input:checked").startswith("u-")


@pytest.mark.parametrize("width_px", [360, 390, 768, 1280])
def test_nothing_overflows_sideways(visit: Visit, width_px: int) -> None:
    """The page fits the width of phones, tablets and laptops, and the button is on the first screen."""
    visitor = visit(viewport={"width": width_px, "height": 740}, color_scheme="light")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width_px
    box = visitor.page.locator("#main").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width_px
    assert box["y"] + box["height"] <= 740


@pytest.mark.parametrize("size", [(390, 900), (900, 900), (1024, 600), (844, 390)], ids=str)
def test_nothing_is_cut_off_during_a_conversation(visit: Visit, size: tuple[int, int]) -> None:
    """Where a column or the picture is narrow, figures, faces and controls take more rows or less room."""
    visitor = visit(viewport={"width": size[0], "height": size[1]})
    box = visitor.page.locator("#main").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= size[1], "the button is not on the first screen"
    visitor.start()
    visitor.wait_for_message(lambda message: message["type"] == "stats" and message["windows"] >= 2, limit_s=15)
    visitor.page.wait_for_timeout(200)
    outside = visitor.page.evaluate(
        """() => [...document.querySelectorAll("#ledger, #faces, .dock")].flatMap((box) => {
          const right = box.getBoundingClientRect().right;
          const inside = [...box.querySelectorAll("*")].filter((e) => e.checkVisibility());
          return inside.filter((e) => e.getBoundingClientRect().right > right + 1).map((e) => e.outerHTML.slice(0, 80));
        })"""
    )
    assert outside == []


def test_the_keyboard_reaches_everything_in_order(visit: Visit) -> None:
    """Tab goes from the button to the sample, the faces, the upload and the sliders; nothing traps it."""
    visitor = visit()
    reached: list[str] = []
    for _ in range(12):
        visitor.page.keyboard.press("Tab")
        focused = visitor.page.evaluate("document.activeElement.id || document.activeElement.name || ''")
        if focused and focused not in reached:
            reached.append(focused)
    wanted = ["main", "other", "upload", "liveliness", "look", "volume"]
    assert [name for name in reached if name in wanted] == wanted


def test_the_page_speaks_to_screen_readers(visit: Visit) -> None:
    """Every control has a name, and the state is announced once per change, without countdowns."""
    visitor = visit()
    visitor.start()
    nameless = visitor.page.evaluate(
        """() => [...document.querySelectorAll("button, input, [role=meter], canvas, video")]
          .filter((e) => e.checkVisibility())
          .filter((e) => ![e.ariaLabel, e.textContent, e.closest("label")?.textContent].some((name) => name?.trim()))
          .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    assert visitor.page.inner_text("#announce").startswith("Live")
