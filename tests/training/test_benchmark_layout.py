"""Benchmark files that are missing, cut short or of another version: one line that names what to mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qtl_core.errors import BenchmarkError
from qtl_training.paper_benchmarks.run import BENCHMARKS
from tests.training import miniature


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_file_of_a_layout_is_missed_by_name(name: str, tmp_path: Path) -> None:
    miniature.MAKE[name](tmp_path)
    BENCHMARKS[name](tmp_path)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        away = path.rename(path.with_name(path.name + ".away"))
        with pytest.raises(BenchmarkError, match=r"missing|cannot read") as caught:
            BENCHMARKS[name](tmp_path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        away.rename(path)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_broken_file_is_named(name: str, tmp_path: Path) -> None:
    miniature.MAKE[name](tmp_path)
    for path in sorted(tmp_path.rglob("*.json*")):
        whole = path.read_bytes()
        for broken in (b"", whole[:-3], b"[]", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000):
            path.write_bytes(broken)
            with pytest.raises(BenchmarkError) as caught:
                BENCHMARKS[name](tmp_path)
            assert path.name in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(whole)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"there is no folder .*none"):
        BENCHMARKS["pope"](tmp_path / "none")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ('{"question_id": 2, "image": "a.jpg"', r"jsonl line 2 is no JSON"),
        ("7", r"jsonl line 2: a JSON object"),
        ('{"image": "a.jpg", "text": "x"}', r"line 2: 'question_id' is missing"),
        ('{"question_id": 1.5, "image": "a.jpg", "text": "x"}', r"line 2: 'question_id' is 1.5"),
        ('{"question_id": 2, "image": "a.jpg", "text": " "}', r"line 2: 'text' is ' '"),
        ('{"question_id": 2, "image": "../a.jpg", "text": "x"}', r"line 2: 'image' is '\.\./a.jpg'"),
        ('{"question_id": 2, "image": "/a.jpg", "text": "x"}', r"line 2: 'image' is '/a.jpg'"),
    ],
)
def test_a_broken_line_is_named_by_its_number(broken: str, says: str, tmp_path: Path) -> None:
    path = miniature.mm_vet(tmp_path) / "llava-mm-vet.jsonl"
    first = path.read_text("utf-8").splitlines()[0]
    path.write_text(f"{first}\n{broken}\n", "utf-8")
    with pytest.raises(BenchmarkError, match=says):
        BENCHMARKS["mm-vet"](tmp_path)


def test_a_missing_picture_is_named_with_its_line_and_the_number_of_others(tmp_path: Path) -> None:
    miniature.pope(tmp_path)
    for path in (tmp_path / "val2014").iterdir():
        path.unlink()
    with pytest.raises(BenchmarkError, match=r"val2014/a.jpg of .*jsonl line 1 is missing, and 1 more"):
        BENCHMARKS["pope"](tmp_path)


def _rewrite(path: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    change(rows)
    miniature.lines(path, rows)


def test_pope_labels_of_another_version(tmp_path: Path) -> None:
    labels = miniature.pope(tmp_path) / "coco/coco_pope_adversarial.json"
    whole = labels.read_bytes()
    _rewrite(labels, lambda rows: rows.pop())
    with pytest.raises(BenchmarkError, match=r"jsonl line 4 has no label"):
        BENCHMARKS["pope"](tmp_path)
    labels.write_bytes(whole)
    _rewrite(labels, lambda rows: rows.append(rows[0]))
    with pytest.raises(BenchmarkError, match=r"adversarial.json line 5 has no question"):
        BENCHMARKS["pope"](tmp_path)
    labels.write_bytes(whole)
    _rewrite(labels, lambda rows: rows.reverse())
    with pytest.raises(BenchmarkError, match=r"adversarial.json line 1 is about b.jpg"):
        BENCHMARKS["pope"](tmp_path)
    labels.write_bytes(whole.replace(b'"no"', b'"perhaps"'))
    with pytest.raises(BenchmarkError, match=r"line 3: 'label' is 'perhaps'"):
        BENCHMARKS["pope"](tmp_path)


def test_what_two_files_do_not_share_is_named(tmp_path: Path) -> None:
    path = miniature.textvqa(tmp_path / "t") / "TextVQA_0.5.1_val.json"
    path.write_text(path.read_text("utf-8").replace("what brand is it?", "what is it?"), "utf-8")
    with pytest.raises(BenchmarkError, match=r"line 1: .* has no question 'What brand is it\?' about"):
        BENCHMARKS["textvqa"](tmp_path / "t")
    path = miniature.textvqa(tmp_path / "t") / "TextVQA_0.5.1_val.json"
    path.write_text(path.read_text("utf-8").replace('"two", ', ""), "utf-8")
    with pytest.raises(BenchmarkError, match=r"entry 2: 'answers' is .* a list of 10 texts"):
        BENCHMARKS["textvqa"](tmp_path / "t")

    path = miniature.gqa(tmp_path / "g") / "testdev_balanced_questions.json"
    path.write_text(path.read_text("utf-8").replace("201640614", "1"), "utf-8")
    with pytest.raises(BenchmarkError, match=r"jsonl line 2: .* has no question 201640614"):
        BENCHMARKS["gqa"](tmp_path / "g")

    path = miniature.scienceqa(tmp_path / "s") / "problems.json"
    path.write_text(path.read_text("utf-8").replace('"answer": 3', '"answer": 4'), "utf-8")
    with pytest.raises(BenchmarkError, match=r"problem 15: 'answer' is 4"):
        BENCHMARKS["scienceqa"](tmp_path / "s")

    path = miniature.vqav2(tmp_path / "v") / "llava_vqav2_mscoco_test2015.jsonl"
    _rewrite(path, lambda rows: rows.pop(1))
    with pytest.raises(BenchmarkError, match=r"test-dev2015.jsonl line 1: .* has no question 262144001"):
        BENCHMARKS["vqav2"](tmp_path / "v")

    path = miniature.mmmu(tmp_path / "m") / "anns_for_eval.json"
    path.write_text(path.read_text("utf-8").replace("validation_Finance_3", "validation_Wine_3"), "utf-8")
    with pytest.raises(BenchmarkError, match=r"entry 3: .* has no answer for validation_Wine_3"):
        BENCHMARKS["mmmu"](tmp_path / "m")


def test_mme_questions_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    release = miniature.mme(tmp_path) / "MME_Benchmark_release_version"
    label = release / "OCR/0001.txt"
    whole = label.read_text("utf-8")
    label.write_text(whole.replace("off", "of"), "utf-8")
    with pytest.raises(BenchmarkError, match=r"line 2: .*OCR/0001.txt does not have this question"):
        BENCHMARKS["mme"](tmp_path)
    label.write_text(whole.replace("\tNo", " No"), "utf-8")
    with pytest.raises(BenchmarkError, match=r"0001.txt: .* should be a question, a tab, and Yes or No"):
        BENCHMARKS["mme"](tmp_path)
    label.write_text(whole, "utf-8")
    questions = tmp_path / "llava_mme.jsonl"
    _rewrite(questions, lambda rows: rows.pop(1))
    with pytest.raises(
        BenchmarkError, match=r"line 1: 1 questions are about OCR/0001.jpg, and MME scores pairs"
    ):
        BENCHMARKS["mme"](tmp_path)
    miniature.mme(tmp_path)
    questions.write_text(questions.read_text("utf-8").replace("code_reasoning/", "coding/"), "utf-8")
    with pytest.raises(
        BenchmarkError, match=r"line 7: 'coding/0020.png' is no picture of one of MME's tasks"
    ):
        BENCHMARKS["mme"](tmp_path)
