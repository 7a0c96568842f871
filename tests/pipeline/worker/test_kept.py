import pytest

from pipeline.worker.kept import Kept

pytestmark = pytest.mark.unit


def test_what_was_used_last_is_kept_and_not_made_again() -> None:
    made: list[str] = []
    kept = Kept[str, str](2)

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    for key in ("a", "b", "a", "c", "a", "b"):
        assert kept.get(key, lambda key=key: make(key)) == key.upper()  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    assert ("a" in kept, "b" in kept, "c" in kept) == (True, True, False)
    assert kept["a"] == "A"
    kept.get("d", lambda: make("d"))
    assert "b" not in kept, "looking at a value is using it"
    kept.clear()
    assert "a" not in kept


def test_the_oldest_makes_room_before_the_next_is_made() -> None:
    kept = Kept[str, bool](1)
    kept.get("a", lambda: True)
    assert kept.get("b", lambda: "a" not in kept)


def test_what_cannot_be_made_is_not_kept() -> None:
    kept = Kept[str, float](1)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: 1 / 0)
    assert "a" not in kept
