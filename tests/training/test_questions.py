"""Questions about digit scenes: answers recomputed, balanced, and from scans the splits do not share."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qtl_training.digits import dataset, scans, scenes
from qtl_training.digits import questions as q


def test_every_option_of_many_scenes_is_recomputed_from_its_wording() -> None:
    drawn = scenes.sample("train", 150, 4)
    seen = set()
    for digits, colours in zip(drawn.digits, drawn.colours, strict=True):
        for kind in q.TYPES:
            for text, answer in q.options(kind, digits, colours):
                assert q.answer(text, digits, colours) == answer, text
                seen.add(text)
    assert seen <= set(q.every_wording())


def test_a_foreign_wording_has_no_answer() -> None:
    with pytest.raises(ValueError, match="not a question about digit scenes"):
        q.answer("who are you?", np.full(9, -1, np.int8), np.full(9, -1, np.int8))


@pytest.mark.parametrize("split", dataset.SPLITS)
def test_question_sets_are_large_balanced_and_reproducible(split: str) -> None:
    first, again = dataset.question_set(split), dataset.question_set(split)
    assert first.questions == again.questions
    assert len(first.questions) >= 5000
    for kind in q.TYPES:
        answers = Counter(question.answer for question in first.questions if question.kind == kind)
        possible = len(answers)
        assert answers.most_common(1)[0][1] / sum(answers.values()) < max(0.56, 2.0 / possible), kind
    assert len({(question.scene, question.text) for question in first.questions}) == len(first.questions)


def test_families_are_the_five_of_the_readme() -> None:
    assert list(q.FAMILIES) == ["existence", "counting", "reading", "attribute", "reasoning"]


def test_guessing_from_the_question_stays_far_below() -> None:
    by_family, by_type = dataset.question_only(dataset.question_set("validation").questions, scenes=1500)
    assert by_family["macro"] < 30
    assert set(by_type) == set(q.TYPES)


def test_splits_share_no_scan() -> None:
    pictures = [{scan.tobytes() for scan in scans.load(split).pictures} for split in scans.SPLITS]
    assert not pictures[0] & pictures[1] and not pictures[0] & pictures[2] and not pictures[1] & pictures[2]
    assert sum(len(scans.load(split).digits) for split in scans.SPLITS) == 1797
    assert all(len(set(scans.load(split).digits.tolist())) == 10 for split in scans.SPLITS)


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    drawn = scenes.sample("test", 5, 1)
    together = scenes.render(drawn, slice(None))
    assert together.shape == (5, 96, 96, 3) and together.dtype == np.uint8
    alone = scenes.render(drawn, slice(3, 4))
    assert np.array_equal(together[3], alone[0])


def test_digits_are_drawn_where_the_scene_says() -> None:
    drawn = scenes.sample("test", 40, 2)
    blank = scenes.Scenes(
        np.full_like(drawn.digits, -1),
        np.full_like(drawn.colours, -1),
        np.full_like(drawn.scans, -1),
        "test",
        2,
    )
    difference = np.abs(
        scenes.render(drawn, slice(None)).astype(int) - scenes.render(blank, slice(None))
    ).max(axis=-1)
    cells = difference.reshape(40, 3, 32, 3, 32).transpose(0, 1, 3, 2, 4).reshape(40, 9, -1).max(axis=-1)
    # Texture and noise have generators that go on behind the digits, so empty cells differ a little.
    assert cells[drawn.digits >= 0].min() > 60


def test_accuracy_is_the_mean_over_types_then_families() -> None:
    asked = (
        q.Question(0, "sum", "a", "1"),
        q.Question(0, "sum", "b", "2"),
        q.Question(0, "locate", "c", "centre"),
        q.Question(0, "read_cell", "d", "4"),
    )
    by_family, by_type = dataset.accuracy(asked, ["1", "x", "centre", "4"])
    assert by_type == {"sum": 50.0, "locate": 100.0, "read_cell": 100.0}
    assert by_family == {"reasoning": 75.0, "reading": 100.0, "macro": 87.5}


@pytest.mark.parametrize("call", [lambda: scans.load("all"), lambda: dataset.question_set("train")])
def test_unknown_splits_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="unknown split"):
        call()
