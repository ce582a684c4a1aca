"""Where validation takes its pictures and questions from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qtl_core.bundle import Picture
from qtl_core.errors import CheckpointError, PictureError
from qtl_export.held_out import FILE, gather

SPEC = Picture(height=8, width=10, resample="bicubic", fit="square", pad_colour=(0, 0, 0))


def write(folder: Path, **changed: object) -> None:
    arrays: dict[str, object] = {
        "pictures": np.arange(720, dtype=np.uint8).reshape(3, 8, 10, 3),
        "questions": np.array([f"question {i}?" for i in range(6)]),
        "answers": np.array(["yes", "no"] * 3),
        "scene": np.arange(6) // 2,
    }
    np.savez(folder / FILE, **{**arrays, **changed})  # type: ignore[arg-type]


def test_of_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path)
    found = gather(tmp_path, None, SPEC, 7)
    assert found.pictures.shape == (7, 8, 10, 3)
    assert found.originals == 3
    assert (found.pictures[:3].ravel() == np.arange(3 * 240, dtype=np.uint8)).all()
    assert [(q.picture, q.text, q.answer) for q in found.questions][-1] == (2, "question 5?", "no")
    again = gather(tmp_path, None, SPEC, 7)
    assert (found.pictures == again.pictures).all()


def test_fewer_than_there_are(tmp_path: Path) -> None:
    write(tmp_path)
    found = gather(tmp_path, None, SPEC, 2)
    assert found.originals == len(found.pictures) == 2
    assert {question.picture for question in found.questions} <= {0, 1}
    assert len(found.questions) == 2


def test_pictures_of_another_size_are_resized(tmp_path: Path) -> None:
    write(tmp_path, pictures=np.zeros((3, 20, 20, 3), np.uint8))
    assert gather(tmp_path, None, SPEC, 3).pictures.shape == (3, 8, 10, 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"pictures": np.zeros((3, 8, 10, 5), np.uint8)},
        {"pictures": np.zeros((3, 8, 10, 3), np.float32)},
        {"pictures": np.array(["a", None], dtype=object)},
        {"scene": np.array([0, 1, 2, 3, 0, 0])},
        {"scene": np.arange(5)},
        {"scene": np.array([0, 1, -1, 0, 0, 0])},
    ],
)
def test_damaged(tmp_path: Path, changed: dict[str, object]) -> None:
    write(tmp_path, **changed)
    with pytest.raises(CheckpointError, match="--pictures"):
        gather(tmp_path, None, SPEC, 3)


def test_truncated(tmp_path: Path) -> None:
    write(tmp_path)
    data = (tmp_path / FILE).read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / FILE).write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            gather(tmp_path, None, SPEC, 3)


def test_made_up_ones_are_called_so(tmp_path: Path) -> None:
    found = gather(tmp_path, None, SPEC, 6)
    assert "made-up" in found.source
    assert len(found.pictures) == found.originals == 6
    assert all(question.answer is None for question in found.questions)
    assert min(picture.std() for picture in found.pictures) > 10


def test_of_the_user(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, colour in (("b.png", "red"), ("a.JPG", "blue")):
        Image.new("RGB", (30, 20), colour).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    found = gather(tmp_path, folder, SPEC, 4)
    assert found.originals == 2
    assert found.pictures[0].mean(axis=(0, 1)).argmax() == 2
    assert found.pictures[1].mean(axis=(0, 1)).argmax() == 0
    assert [question.picture for question in found.questions] == [0, 1]


def test_none_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no picture"):
        gather(tmp_path, tmp_path, SPEC, 4)
    with pytest.raises(PictureError, match="cannot read the folder"):
        gather(tmp_path, tmp_path / "nowhere", SPEC, 4)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    with pytest.raises(PictureError, match=r"broken\.png"):
        gather(tmp_path, tmp_path, SPEC, 4)
