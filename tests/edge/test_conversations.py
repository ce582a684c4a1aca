"""LLaVA's JSON: what is read, and what a bad sample is told by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.training.conversations import read_conversations
from qtl_core.crossing import MAX_WORDS, Row, read_texts, texts_up
from qtl_core.errors import PictureError, SampleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/c.png"):
        (pictures / name).write_bytes(b"not looked at here")
    return pictures


def sample(*texts: str, **more: Any) -> dict[str, Any]:
    said = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"conversations": said, **more}


GOOD = [
    sample("<image>\nwhat?", "this", "and now?", "that", image="a.png", id="first"),
    sample("what is two?", "2"),
    sample("<image>\n<image>\nboth?", "yes", "in <image> too?", "no", image=["a.png", "deep/c.png", "b.png"]),
    sample("what?\n<image>", "that", image="b.png", id=7),
    sample("see <image> and <image>, say", "ok", image=["b.png", "b.png"]),
]


def write(folder: Path, samples: list[Any], *, lines: bool = False) -> Path:
    file = folder.parent / "data.json"
    said = [one if isinstance(one, str) else json.dumps(one) for one in samples]
    file.write_text("\n\n".join(said) + "\n" if lines else f"[{','.join(said)}]")
    return file


@pytest.mark.parametrize("lines", [False, True])
def test_what_is_read(folder: Path, lines: bool) -> None:
    found = read_conversations(write(folder, GOOD, lines=lines), folder)
    first, text, several, behind, among = found.samples
    assert (first.index, first.id, first.turns) == (0, "first", (("what?", "this"), ("and now?", "that")))
    assert (first.places, first.names) == (((0, 0),), ("a.png",))
    assert (text.id, text.pictures, text.places) == ("1", (), ())
    assert several.turns == (("both?", "yes"), ("in  too?", "no"))
    assert several.places == ((0, 0), (0, 0), (1, 3)) and several.names == ("a.png", "deep/c.png", "b.png")
    assert (behind.id, behind.turns, behind.places) == ("7", (("what?", "that"),), ((0, 0),))
    assert (among.turns[0][0], among.places) == ("see  and , say", ((0, 4), (0, 9)))
    assert [path.name for path in found.pictures] == ["a.png", "c.png", "b.png"]
    assert all(path.is_file() for path in found.pictures) and not found.bad


def test_a_row_crosses_as_it_is(folder: Path) -> None:
    found = read_conversations(write(folder, GOOD), folder)
    place_of = {path: place for place, path in enumerate(found.pictures)}
    rows = tuple(one.row(place_of) for one in found.samples)
    assert rows[2] == Row((0, 1, 2), found.samples[2].turns, True, ((0, 0), (0, 0), (1, 3)))
    assert read_texts(texts_up(rows)[1], 3) == rows


def test_the_digest_is_of_what_is_trained_on(folder: Path) -> None:
    whole = read_conversations(write(folder, GOOD), folder).digest
    moved = folder.parent / "elsewhere"
    folder.rename(moved)
    assert read_conversations(write(moved, GOOD, lines=True), moved).digest == whole
    assert read_conversations(write(moved, GOOD[:-1]), moved).digest != whole
    assert read_conversations(write(moved, GOOD[::-1]), moved).digest != whole


BAD: dict[str, tuple[Any, str]] = {
    "no-answer": (sample("what?"), "its last question has no answer"),
    "empty-answer": (sample("what?", " \n"), "its question 1 has an empty answer"),
    "empty-question": (sample(" ", "this"), "its question 1 is empty"),
    "no-turns": ({"conversations": []}, '"conversations" is missing, empty or no list'),
    "not-turns": ({"conversations": ["a", "b"]}, "are not all objects"),
    "no-object": (["what?"], "it is a list, and not an object"),
    "gpt-first": ({"conversations": [{"from": "gpt", "value": "a"}]}, "where 'human' is due"),
    "no-marker": (sample("what?", "this", image="a.png"), "0 times <image>, and it names 1 pictures"),
    "marker-alone": (sample("<image>\nwhat?", "this"), "1 times <image>, and it names 0 pictures"),
    "marker-in-answer": (sample("<image>?", "<image>", image="a.png"), "its answer 1 has a <image>"),
    "missing": (sample("<image>?", "this", image="z.png"), "there is no picture 'z.png'"),
    "folder": (sample("<image>?", "this", image="deep"), "the picture 'deep' is no file"),
    "up": (sample("<image>?", "this", image="deep/../../data.json"), "is not in the picture folder"),
    "absolute": (sample("<image>?", "this", image="/etc/hostname"), "is not in the picture folder"),
    "drive": (sample("<image>?", "this", image="C:\\x.png"), "is not in the picture folder"),
    "link": (sample("<image>?", "this", image="out.png"), "is not in the picture folder"),
    "no-name": (sample("<image>?", "this", image=3), '"image" is a number'),
    "too-many": (
        sample("<image><image><image><image>?", "this", image=["a.png"] * 4),
        "it shows 4 pictures, and the recipe's max_pictures is 3",
    ),
    "long": (sample("x" * (MAX_WORDS + 1), "this"), f"a text has {MAX_WORDS + 1} characters"),
}


@pytest.mark.parametrize(("value", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_sample_is_named(folder: Path, value: Any, says: str) -> None:
    (folder.parent / "outside.png").write_bytes(b"x")
    (folder / "out.png").symlink_to(folder.parent / "outside.png")
    file = write(folder, [*GOOD, value])
    with pytest.raises(SampleError) as stopped:
        read_conversations(file, folder, most_pictures=3)
    assert f"{file}, sample 5: " in str(stopped.value) and says in str(stopped.value)
    assert "\n" not in str(stopped.value) and "--on-bad-sample skip" in str(stopped.value)
    found = read_conversations(file, folder, on_bad="skip", most_pictures=3)
    assert len(found.samples) == 5 and [one.index for one in found.bad] == [5] and says in found.bad[0].why


def test_a_line_that_is_no_json(folder: Path) -> None:
    file = write(folder, [GOOD[0], '{"conversations": [', GOOD[1]], lines=True)
    with pytest.raises(SampleError, match="sample 1: line 3 is no JSON"):
        read_conversations(file, folder)
    found = read_conversations(file, folder, on_bad="skip")
    assert [one.index for one in found.samples] == [0, 2] and found.bad[0].index == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[{}", "is no JSON"),
        ("", "holds no sample"),
        ("[]", "holds no sample"),
        ("[[1]]", "the first: sample 0"),
    ],
)
def test_a_file_without_samples(folder: Path, content: str, says: str) -> None:
    file = folder.parent / "data.json"
    file.write_text(content)
    with pytest.raises(SampleError, match=says):
        read_conversations(file, folder, on_bad="skip")


def test_what_is_not_there(folder: Path) -> None:
    with pytest.raises(SampleError, match="cannot be read: No such file"):
        read_conversations(folder / "no.json", folder)
    with pytest.raises(SampleError, match=r"picture folder .* is not there"):
        read_conversations(write(folder, GOOD), folder / "no")


def test_further_checks_name_the_sample_too(folder: Path) -> None:
    found = read_conversations(write(folder, GOOD), folder)

    def check(one: Any) -> None:
        if "b.png" in one.names:
            raise PictureError("b.png is broken")

    with pytest.raises(SampleError, match=r"sample 2: b.png is broken; correct it"):
        found.checked(check, "stop")
    kept = found.checked(check, "skip")
    assert [one.index for one in kept.samples] == [0, 1] and [one.index for one in kept.bad] == [2, 3, 4]
    assert kept.bad[1].why == "sample 3 (id '7'): b.png is broken"
