"""Tests of server/portraits.py: defaults, uploads and crops."""

import asyncio
import io
import json
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import MediaError
from pipeline.portrait import Crop
from server.errors import NotFound, UploadLimitReached
from server.portraits import FrameSize, Portrait, PortraitStore

pytestmark = pytest.mark.unit

SIZE = FrameSize(height_px=96, width_px=64)


def image(width_px: int, height_px: int, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width_px, height_px), colour).save(out, format="PNG")
    return out.getvalue()


async def upload(
    store: PortraitStore, data: bytes | None = None, *, visitor: str = "me", shown: Collection[str] = ()
) -> Portrait:
    return await store.upload(data or image(100, 100), SIZE, visitor=visitor, shown=lambda: shown)


@pytest.fixture
def store() -> Iterator[PortraitStore]:
    with ThreadPoolExecutor(1) as executor:
        yield PortraitStore(executor, max_uploads=4, max_uploads_per_visitor=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index.json").write_text(json.dumps([{"id": "ada", "name": "Ada"}, {"id": "bo", "name": "Bo"}]))
    (tmp_path / "ada.png").write_bytes(image(128, 192))
    (tmp_path / "bo.png").write_bytes(image(128, 192, (30, 200, 30)))
    return tmp_path


async def test_a_missing_folder_means_no_portraits(store: PortraitStore, tmp_path: Path) -> None:
    await store.load_defaults(tmp_path / "nowhere")
    assert store.list() == []
    assert store.default_id is None


async def test_the_defaults_are_listed_in_their_order(store: PortraitStore, folder: Path) -> None:
    await store.load_defaults(folder)
    assert store.list()[0] == {"id": "ada", "name": "Ada", "kind": "default", "url": "/api/portraits/ada.png"}
    assert store.default_id == "ada"


async def test_a_portrait_is_cut_as_rgb_and_as_i420_of_the_same_colour(store: PortraitStore, folder: Path) -> None:
    await store.load_defaults(folder)
    cut = await store.cut("ada", SIZE)
    assert cut.rgb.shape == (96, 64, 3)
    assert cut.still.shape == (144, 64)
    np.testing.assert_array_equal(cut.rgb[40, 30], (200, 30, 30))
    # BT.601, limited range: 16 + (65.5 R + 128.6 G + 25 B) / 256.
    assert abs(int(cut.still[40, 30]) - 85) <= 1


async def test_a_frame_of_another_aspect_gets_a_crop_of_its_own(store: PortraitStore, folder: Path) -> None:
    await store.load_defaults(folder)
    assert (await store.cut("ada", FrameSize(height_px=64, width_px=64))).rgb.shape == (64, 64, 3)


async def test_a_picture_is_served_as_png_and_its_tag_changes_with_it(store: PortraitStore) -> None:
    portrait = await upload(store, image(300, 300))
    png, tag = await store.png(portrait.id, SIZE)
    assert Image.open(io.BytesIO(png)).size == (64, 96)
    assert (await store.png(portrait.id, SIZE))[1] == tag
    moved = await store.move_crop(portrait.id, Crop(x_px=0, y_px=0, width_px=100, height_px=150), SIZE)
    assert (await store.png(portrait.id, SIZE))[1] != tag
    assert moved.url != portrait.url


async def test_before_the_engine_is_known_the_whole_picture_is_served(store: PortraitStore, folder: Path) -> None:
    await store.load_defaults(folder)
    png, _ = await store.png("ada", None)
    assert Image.open(io.BytesIO(png)).size == (128, 192)


async def test_an_upload_says_how_it_is_cut(store: PortraitStore) -> None:
    portrait = await upload(store, image(300, 200))
    detail = portrait.detail
    assert detail["kind"] == "upload"
    assert detail["image"] == {"width_px": 300, "height_px": 200}
    assert detail["face_found"] is False
    assert detail["crop"]["width_px"] / detail["crop"]["height_px"] == pytest.approx(64 / 96, rel=0.02)


async def test_the_oldest_upload_of_a_visitor_goes_for_a_further_one_and_nobody_elses(
    store: PortraitStore, folder: Path
) -> None:
    await store.load_defaults(folder)
    other = await upload(store, visitor="other")
    ids = [(await upload(store)).id for _ in range(9)]
    assert [entry["id"] for entry in store.list([other.id, *ids])] == ["ada", "bo", other.id, *ids[-2:]]
    with pytest.raises(NotFound):
        store.get(ids[0])


async def test_where_all_visitors_together_have_too_many_the_oldest_of_all_goes(store: PortraitStore) -> None:
    ids = [(await upload(store, visitor=name)).id for name in ("a", "b", "b", "c", "d")]
    assert [entry["id"] for entry in store.list(ids)] == ids[1:]
    again = (await upload(store, visitor="d")).id
    assert [entry["id"] for entry in store.list([*ids, again])] == [*ids[1:4], again], "one's own goes first"


async def test_an_upload_that_a_session_shows_stays(store: PortraitStore) -> None:
    shown: set[str] = set()
    ids = [(await upload(store, shown=shown)).id for _ in range(2)]
    shown.add(ids[0])
    ids.append((await upload(store, shown=shown)).id)
    assert [entry["id"] for entry in store.list(ids)] == [ids[0], ids[2]]
    shown.add(ids[2])
    with pytest.raises(UploadLimitReached, match="sessions show all 2 that can be kept"):
        await upload(store, shown=shown)
    ids += [(await upload(store, visitor=name, shown=shown)).id for name in ("b", "c")]
    shown |= {*ids}
    with pytest.raises(UploadLimitReached, match="sessions show all 4 that can be kept"):
        await upload(store, visitor="d", shown=shown)
    assert [entry["id"] for entry in store.list(ids)] == [ids[0], *ids[2:]]


async def test_a_session_that_begins_while_an_upload_is_decoded_keeps_its_portrait(store: PortraitStore) -> None:
    shown: set[str] = set()
    ids = [(await upload(store, shown=shown)).id for _ in range(2)]
    coming = asyncio.create_task(upload(store, shown=shown))
    await asyncio.sleep(0)
    shown.add(ids[0])
    ids.append((await coming).id)
    assert [entry["id"] for entry in store.list(ids)] == [ids[0], ids[2]]


async def test_an_upload_is_shown_to_nobody_who_does_not_know_its_id(store: PortraitStore, folder: Path) -> None:
    first, second = await upload(store), await upload(store)
    assert store.default_id is None
    await store.load_defaults(folder)
    assert [entry["id"] for entry in store.list()] == ["ada", "bo"]
    assert {entry["id"] for entry in store.list([second.id, "nobody"])} == {"ada", "bo", second.id}
    assert store.default_id == "ada"
    assert len(first.id) >= 32


async def test_a_crop_outside_the_image_is_refused_and_changes_nothing(store: PortraitStore) -> None:
    portrait = await upload(store, image(300, 300))
    with pytest.raises(MediaError, match="inside the image of 300x300 px"):
        await store.move_crop(portrait.id, Crop(x_px=250, y_px=0, width_px=100, height_px=150), SIZE)
    assert store.get(portrait.id) == portrait


async def test_the_crop_of_a_default_cannot_be_moved(store: PortraitStore, folder: Path) -> None:
    await store.load_defaults(folder)
    with pytest.raises(NotFound):
        await store.move_crop("ada", Crop(x_px=0, y_px=0, width_px=64, height_px=96), SIZE)


async def test_a_text_is_no_portrait(store: PortraitStore) -> None:
    with pytest.raises(MediaError):
        await upload(store, b"hello")
