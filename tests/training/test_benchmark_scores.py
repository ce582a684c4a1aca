"""Each benchmark on its miniature files: what is asked, what it scores, what its own scorer is given.

The scores were worked out by hand. The miniature models answer at random: nothing here is about accuracy.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtl_training.eval_cli import _BENCHMARKS
from qtl_training.paper_benchmarks.run import BENCHMARKS
from tests.training import miniature


def test_the_command_and_the_package_know_the_same_benchmarks() -> None:
    assert list(_BENCHMARKS) == list(BENCHMARKS) == list(miniature.MAKE)


def test_pope_by_category(tmp_path: Path) -> None:
    pope = BENCHMARKS["pope"](miniature.pope(tmp_path))
    assert pope.questions[2].text == "Is there a umbrella in the imange?" + miniature.SHORT
    replies = dict(enumerate(["Yes", "No", "Yes.", "No, there is no car", "Yes", "no"]))
    # Adversarial: said yes no yes no, true yes yes no no: one of each kind.
    fifty = {"n": 4, "accuracy": 50.0, "f1": 50.0, "precision": 50.0, "recall": 50.0, "yes_share": 50.0}
    right = {"n": 2, "accuracy": 100.0, "f1": 100.0, "precision": 100.0, "recall": 100.0, "yes_share": 50.0}
    mean = {"accuracy": 75.0, "f1": 75.0, "precision": 75.0, "recall": 75.0, "yes_share": 50.0}
    assert pope.score(replies) == {"adversarial": fifty, "popular": right, "mean": mean}
    files = pope.predictions(replies)
    assert list(files) == ["coco_pope_adversarial_answers.json", "coco_pope_popular_answers.json"]
    assert [json.loads(row) for row in files["coco_pope_popular_answers.json"].splitlines()] == [
        {"question": "Is there a cat in the image?", "answer": "Yes"},
        {"question": "Is there a cat in the image?", "answer": "no"},
    ]


def test_pope_of_unequal_errors(tmp_path: Path) -> None:
    pope = BENCHMARKS["pope"](miniature.pope(tmp_path))
    scores = pope.score(dict(enumerate(["yes", "yes", "yes", "no", "no", "no"])))
    assert scores is not None
    # Two of three yes are true, both true ones were found: F1 = 2 * 2 / (3 + 2).
    assert scores["adversarial"]["precision"] == pytest.approx(200 / 3)
    assert scores["adversarial"]["recall"] == 100.0
    assert scores["adversarial"]["f1"] == pytest.approx(80.0)
    assert scores["adversarial"]["yes_share"] == 75.0
    # Never yes: nothing to divide by.
    assert (scores["popular"]["precision"], scores["popular"]["f1"], scores["popular"]["accuracy"]) == (
        0,
        0,
        50,
    )


def test_textvqa_by_ten_people(tmp_path: Path) -> None:
    textvqa = BENCHMARKS["textvqa"](miniature.textvqa(tmp_path))
    # "acme" stands three times once normalised (the fourth is "c m e"): 0.9. "2" once: 0.3. "go": 0.
    assert textvqa.score({0: "The Acme.", 1: "2", 2: "go"}) == {"accuracy": pytest.approx(40.0)}
    assert textvqa.score({0: "ACME", 1: "12", 2: "Stop!"}) == {"accuracy": pytest.approx(290 / 3)}
    assert textvqa.predictions({0: "x"}) == {}


def test_gqa_by_type(tmp_path: Path) -> None:
    gqa = BENCHMARKS["gqa"](miniature.gqa(tmp_path))
    replies = {0: "No.", 1: "Woman", 2: "blue", 3: "a plate"}
    assert gqa.score(replies) == {
        "accuracy": 50.0,
        "binary": 50.0,
        "open": 50.0,
        "structural": {"choose": 0.0, "query": 50.0, "verify": 100.0},
        "semantic": {"attr": 0.0, "global": 100.0, "rel": 50.0},
    }
    files = gqa.predictions(replies)
    assert json.loads(files["testdev_balanced_predictions.json"])[:2] == [
        {"questionId": "201307251", "prediction": "no"},
        {"questionId": "201640614", "prediction": "woman"},
    ]


def test_gqa_takes_its_data_in_a_folder_too(tmp_path: Path) -> None:
    miniature.gqa(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("images", "testdev_balanced_questions.json"):
        (tmp_path / name).rename(tmp_path / "data" / name)
    gqa = BENCHMARKS["gqa"](tmp_path)
    assert gqa.questions[0].picture == tmp_path / "data/images/n1.jpg"


def test_scienceqa_with_and_without_a_picture(tmp_path: Path) -> None:
    scienceqa = BENCHMARKS["scienceqa"](miniature.scienceqa(tmp_path))
    asked = [(question.text, question.prompt, question.picture) for question in scienceqa.questions]
    instruction = "\nAnswer with the option's letter from the given choices directly."
    assert asked[0] == ("Which word fits?\nA. one\nB. two" + instruction,) * 2 + (None,)
    colony = "Which colony is shown?\nA. Maine\nB. Ohio\nC. Utah" + instruction
    assert asked[1] == (colony, "<image>\n" + colony, tmp_path / "images/test/5/image.png")
    # "C" is no choice of the third; the fourth is right; the fifth of the split was never asked.
    replies = {0: "B", 1: "A. Maine", 2: "C", 3: "The answer is D."}
    scores = scienceqa.score(replies)
    assert scores == {
        "n": 5,
        "correct": 3,
        "accuracy": 60.0,
        "n_with_picture": 2,
        "accuracy_with_picture": 50.0,
        "n_without_picture": 3,
        "accuracy_without_picture": pytest.approx(200 / 3),
    }
    result = json.loads(scienceqa.predictions(replies)["scienceqa_results.json"])
    assert (result["acc"], result["correct"], result["count"]) == (60.0, 3, 5)
    assert result["results"] == {"4": 1, "5": 0, "11": -1, "15": 3}
    assert result["outputs"]["5"] == "A. Maine"
    part = scienceqa.score({0: "B", 1: "B"})
    assert part is not None and (part["n"], part["accuracy"]) == (2, 50.0)


def test_mme_by_task(tmp_path: Path) -> None:
    mme = BENCHMARKS["mme"](miniature.mme(tmp_path))
    # OCR: yes no | yes yes: three of four right, one picture of two whole. Artwork: neither | no. Code: both.
    replies = dict(enumerate(["Yes", "No", "yes", "Yes it is", "a painting", "no\tno", "No.", "yes"]))
    assert mme.score(replies) == {
        "perception": {
            "score": 125.0 + 50.0,
            "artwork": {"n": 2, "acc": 50.0, "acc_plus": 0.0, "score": 50.0},
            "OCR": {"n": 4, "acc": 75.0, "acc_plus": 50.0, "score": 125.0},
        },
        "cognition": {
            "score": 200.0,
            "code_reasoning": {"n": 2, "acc": 100.0, "acc_plus": 100.0, "score": 200.0},
        },
        "neither_yes_nor_no": 1,
    }
    files = mme.predictions(replies)
    assert set(files) == {"mme/OCR.txt", "mme/artwork.txt", "mme/code_reasoning.txt"}
    # The question as the label file has it, its two spaces included; one line, four columns.
    assert files["mme/artwork.txt"].splitlines()[1].split("\t") == [
        "14777.txt",
        "Is it a vase?  Please answer yes or no.",
        "No",
        "no no",
    ]


def test_mme_leaves_half_asked_pictures_out_of_acc_plus(tmp_path: Path) -> None:
    mme = BENCHMARKS["mme"](miniature.mme(tmp_path))
    scores = mme.score({0: "Yes", 1: "No", 2: "No"})
    assert scores is not None
    assert scores["perception"]["OCR"]["acc"] == pytest.approx(200 / 3)
    assert scores["perception"]["OCR"]["acc_plus"] == 100.0


def test_mmmu_by_domain(tmp_path: Path) -> None:
    mmmu = BENCHMARKS["mmmu"](miniature.mmmu(tmp_path))
    assert [question.id for question in mmmu.questions] == [
        "validation_Accounting_1",
        "validation_Art_Theory_7",
        "validation_Finance_3",
    ]
    replies = {0: "(B) the blue bar", 1: "no idea", 2: "The profit is 1234.5"}
    # Drawn by the questions' names, and the same on every machine.
    drawn = {"validation_Art_Theory_7": "B", "validation_Accounting_2": "D"}
    output = json.loads(mmmu.predictions(replies)["mmmu_output.json"])
    assert output == {
        "validation_Accounting_1": "B",
        "validation_Finance_3": "The profit is 1234.5",
        "validation_Finance_4": "INVALID GENERATION FOR MULTIPLE IMAGE INPUTS",
        **drawn,
    }
    assert mmmu.score(replies) == {
        "n": 5,
        "accuracy": 40.0,
        "drawn": 2,
        "domains": {"Art and Design": 0.0, "Business": 50.0},
        "subjects": {"Accounting": 50.0, "Art_Theory": 0.0, "Finance": 50.0},
    }
    # An empty free answer is an answer, and wrong; of a part nothing unasked is counted.
    assert mmmu.score({2: ""}) == {
        "n": 1,
        "accuracy": 0.0,
        "drawn": 0,
        "domains": {"Business": 0.0},
        "subjects": {"Finance": 0.0},
    }


def test_mm_vet_writes_what_its_judge_takes(tmp_path: Path) -> None:
    mm_vet = BENCHMARKS["mm-vet"](miniature.mm_vet(tmp_path))
    files = mm_vet.predictions({0: "x = 1", 1: "No.\nTwo lines"})
    assert json.loads(files["mm-vet_results.json"]) == {"v1_0": "x = 1", "v1_1": "No.\nTwo lines"}
    assert mm_vet.score({0: "x"}) is None and "MM-Vet_Evaluator" in mm_vet.scored_at


def test_vqav2_submits_the_whole_test_set(tmp_path: Path) -> None:
    vqav2 = BENCHMARKS["vqav2"](miniature.vqav2(tmp_path))
    assert [question.id for question in vqav2.questions] == [262144001, 262144002]
    files = vqav2.predictions({0: "Two dogs."})
    assert json.loads(files["vqav2_submission.json"]) == [
        {"question_id": 262144000, "answer": ""},
        {"question_id": 262144001, "answer": "2 dogs"},
        {"question_id": 262144002, "answer": ""},
        {"question_id": 262145000, "answer": ""},
    ]
    assert vqav2.score({0: "x"}) is None and "challenge" in vqav2.scored_at
