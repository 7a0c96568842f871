"""The page with the large engine, from a folder in the official layout at a tiny size: the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pipeline.config import LargeConfig
from tests.fakes.checkpoint import write_checkpoint

if TYPE_CHECKING:
    from playwright.sync_api import Request

    from tests.e2e.conftest import Server, Visitor

    Visit = Callable[..., Visitor]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def engine() -> str:
    """The engine that takes a prompt."""
    return "large"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Tiny weights and small pictures on the CPU, and nothing written elsewhere."""
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoint(folder)
    values = {"device": "cpu", "height_px": 64, "width_px": 128, "cache_dir": "null"}
    settings = [part for key, value in values.items() for part in ("--set", f"engine.large.{key}={value}")]
    return ("--weights", str(folder), "--set", "engine.threads=1", *settings)


def wait_for_encoded(server: Server, visitor: Visitor, *, num_prompts: int, limit_s: int = 20) -> None:
    """Wait until the engine has read so many prompts beside its own."""
    for _ in range(10 * limit_s):
        if server.log_tail().count("encoded a prompt") >= num_prompts:
            return
        visitor.page.wait_for_timeout(100)
    pytest.fail(f"the engine did not read {num_prompts} prompts; its log ends:\n{server.log_tail()}")


def test_a_prompt_starts_a_conversation_and_changes_it(visit: Visit, server: Server) -> None:
    """The field begins with the server's own prompt; what is written goes with the offer, and later by Enter."""
    visitor = visit()
    page = visitor.page
    page.wait_for_selector("#prompt:visible")
    assert page.input_value("#prompt-text") == LargeConfig().prompt
    assert not page.is_visible("#liveliness"), "a slider that this engine does not know"
    assert not page.is_visible("#prompt-apply")
    page.fill("#prompt-text", "  A woman laughs ")
    offers: list[Request] = []
    page.on("request", lambda request: offers.append(request) if request.url.endswith("/offer") else None)
    page.click("#main")
    visitor.wait_for_message(lambda message: message.get("state") in ("live", "resting"), num_seen=0, limit_s=60)
    assert json.loads(offers[0].post_data or "")["params"] == {"prompt": "A woman laughs"}
    assert not page.is_visible("#prompt-apply"), "there is nothing new to apply"
    page.fill("#prompt-text", "A man weeps")
    assert page.is_visible("#prompt-apply")
    visitor.shoot("prompt")
    page.press("#prompt-text", "Enter")
    update = next(message for message in visitor.sent if message["type"] == "update")
    assert update["params"] == {"prompt": "A man weeps"}
    visitor.wait_for_message(lambda message: message == {"type": "done", "id": update["id"]}, num_seen=0)
    assert not page.is_visible("#prompt-apply")
    assert "takes some seconds" in page.inner_text("#prompt-note")
    wait_for_encoded(server, visitor, num_prompts=2)
    page.fill("#prompt-text", "")
    page.click("#prompt-apply")
    visitor.wait_for_message(lambda message: message == {"type": "done", "id": update["id"] + 1}, num_seen=0)
    assert visitor.sent[-1]["params"] == {"prompt": LargeConfig().prompt}, "an empty field means the server's own"
