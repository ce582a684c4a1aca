"""How answers are read before they are scored: every rule against values worked out by hand."""

from __future__ import annotations

import pytest

from qtl_training.paper_benchmarks.gqa import as_predicted
from qtl_training.paper_benchmarks.mme import yes_or_no
from qtl_training.paper_benchmarks.mmmu_answers import agrees, drawn_choice, meant_values, named_choice
from qtl_training.paper_benchmarks.pope import says_yes
from qtl_training.paper_benchmarks.scienceqa import chosen_letter
from qtl_training.paper_benchmarks.textvqa import bare_question
from qtl_training.paper_benchmarks.vqa_answers import normalise, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("", ""),
        ("  The Cat,\n and a dog? ", "cat and dog"),
        ("Two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("3.50", "3.50"),
        ("U.S.A.", "usa"),
        ("v1.2.", "v1.2"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),
        ("Bob's", "bob 's"),
        ("left-hand", "left hand"),
        ("left- hand", "left hand"),
        ("left-hand -", "lefthand"),
        ("(yes)", "yes"),
        ("a/b c", "b c"),
        ("#5 100%", "#5 100%"),
    ],
)
def test_answers_are_normalised(answer: str, normalised: str) -> None:
    assert normalise(answer) == normalised


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_the_vqa_accuracy_is_the_mean_over_sets_of_nine_people(matches: int, accuracy: float) -> None:
    people = ["A stop"] * matches + ["go"] * (10 - matches)
    leave_one_out = [min(1.0, (people[:i] + people[i + 1 :]).count("A stop") / 3) for i in range(10)]
    assert vqa_accuracy("stop", people) == pytest.approx(accuracy) == pytest.approx(sum(leave_one_out) / 10)


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("NO", True),  # as the published scorer has it
        ("There is not one", False),
        ("Yes. No doubt", True),
        ("nothing", True),
        ("", True),
    ],
)
def test_pope_reads_the_words_of_the_first_sentence(reply: str, yes: bool) -> None:
    assert says_yes(reply) is yes


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("YES", "yes"),
        ("No.", "no"),
        ("  no", "no"),
        ("I know", "other"),
        ("Not so", "no"),
        ("The answer is yes", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_the_first_four_letters(reply: str, said: str) -> None:
    assert yes_or_no(reply) == said


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B. Ohio", "B"),
        ("B.", ""),
        ("b", ""),
        ("F", ""),
        ("The answer is C.", "C"),
        ("The answer is C. Or The answer is D.", ""),
        ("The answer is C", ""),
        ("", ""),
        ("AB", ""),
    ],
)
def test_scienceqa_reads_a_letter(reply: str, letter: str) -> None:
    assert chosen_letter(reply) == letter


def test_gqa_reads_an_answer_without_its_full_stops() -> None:
    assert as_predicted("A Woman..") == "a woman"
    assert as_predicted("3.5") == "3.5"


@pytest.mark.parametrize(
    "prompt",
    [
        "What is it?\nReference OCR token: A, B\nAnswer",
        "What is it?\nAnswer",
        "Reference OCR token: A, B\nWhat is it?\nAnswer",
        "OCR tokens: A, B. Question: What is it? Short answer:",
    ],
)
def test_textvqa_finds_the_question_in_its_prompt(prompt: str) -> None:
    assert bare_question(prompt) == "What is it?"


_CHOICES = {"A": "the red bar", "B": "the blue bar", "C": "red", "D": "4"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("A or rather (B)", "B"),  # brackets before bare letters
        ("(A), no, (C)", "C"),  # the last one
        ("either A or D", "D"),
        ("It is surely the blue bar there", "B"),
        ("the blue bar", None),  # five words or fewer quote nothing
        ("first the red bar then the blue bar", "B"),
        ("no idea", None),
        ("", None),
    ],
)
def test_mmmu_reads_the_choice_named_last(reply: str, letter: str | None) -> None:
    assert named_choice(reply, _CHOICES) == letter


def test_mmmu_draws_the_same_choice_for_a_question_every_time() -> None:
    drawn = [drawn_choice(f"validation_Art_{i}", "ABCD") for i in range(400)]
    assert drawn == [drawn_choice(f"validation_Art_{i}", "ABCD") for i in range(400)]
    assert all(60 < drawn.count(letter) < 140 for letter in "ABCD")


def test_mmmu_collects_what_a_free_answer_could_mean() -> None:
    # A number with a comma and a point falls apart in MMMU's evaluator, unless it stands alone.
    assert meant_values("The total is $1,234.5") == {"$1,234.5", 1234.0, 234.5}
    assert meant_values("The total is 1,234.5") == {1234.5, 1234.0, 234.5}
    # An equals sign leads to an answer in the last line only.
    assert meant_values("x = 3\nso y = 12.") == {12.0}
    assert meant_values("x = a\nno more") == {"x = a\nno more"}
    assert meant_values("Paris") == {"paris"}
    assert meant_values("A") == {" a", "a "}


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("The answer is 1,234.50", ["1234.5"], True),
        ("The answer is 1234.51", ["1234.5"], False),
        ("about 0.333", ["1/3", "0.33"], True),
        ("It is the Nile River", ["nile"], True),
        ("the Amazon", ["nile"], False),
        ("plan b", ["B"], True),
        ("barbecue", ["B"], False),
    ],
)
def test_mmmu_compares_free_answers_by_number_or_text(reply: str, gold: list[str], right: bool) -> None:
    assert agrees(reply, gold) is right
