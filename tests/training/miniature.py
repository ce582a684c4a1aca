"""Miniature files of each benchmark, in the layout and the wording of the published ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

SHORT = "\nAnswer the question using a single word or phrase."


def picture(path: Path, colour: tuple[int, int, int] = (120, 40, 200)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), colour).save(path)


def lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def document(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def pope(folder: Path) -> Path:
    """Four adversarial questions (yes yes no no), two popular ones (yes no), about two pictures."""
    asked = [
        ("adversarial", "a.jpg", "cat", "yes"),
        ("adversarial", "a.jpg", "dog", "yes"),
        ("adversarial", "b.jpg", "umbrella", "no"),
        ("adversarial", "b.jpg", "car", "no"),
        ("popular", "a.jpg", "cat", "yes"),
        ("popular", "b.jpg", "cat", "no"),
    ]
    lines(
        folder / "llava_pope_test.jsonl",
        (
            # The published file has this misspelling before vowels.
            {
                "question_id": number,
                "image": image,
                "text": f"Is there a {thing} in the {'imange' if thing[0] in 'aeiou' else 'image'}?{SHORT}",
                "category": category,
            }
            for number, (category, image, thing, _) in enumerate(asked, 1)
        ),
    )
    for kind in ("adversarial", "popular"):
        lines(
            folder / f"coco/coco_pope_{kind}.json",
            (
                {
                    "question_id": i,
                    "image": image,
                    "text": f"Is there a {thing} in the image?",
                    "label": label,
                }
                for i, (category, image, thing, label) in enumerate(asked)
                if category == kind
            ),
        )
    picture(folder / "val2014/a.jpg")
    picture(folder / "val2014/b.jpg", (0, 90, 0))
    return folder


def textvqa(folder: Path) -> Path:
    """Three questions; two share a picture, and with it their id."""
    asked = [
        ("p1", "What brand is it?\nReference OCR token: ACME, 12"),
        ("p1", "How many are left?\nReference OCR token: ACME, 12"),
        ("p2", "What does the sign say?\nReference OCR token: "),
    ]
    lines(
        folder / "llava_textvqa_val_v051_ocr.jsonl",
        (
            {"question_id": name, "image": f"{name}.jpg", "text": text + SHORT, "category": "default"}
            for name, text in asked
        ),
    )
    people = [
        ("p1", "what brand is it?", ["acme"] * 2 + ["Acme!", "a c m e"] + ["none"] * 6),
        ("p1", "how many are left?", ["two"] + ["12"] * 9),
        ("p2", "what does the sign say?", ["stop"] * 10),
    ]
    document(
        folder / "TextVQA_0.5.1_val.json",
        {
            "dataset_type": "val",
            "data": [
                {"image_id": image, "question": question, "question_id": number, "answers": answers}
                for number, (image, question, answers) in enumerate(people, 34602)
            ],
        },
    )
    picture(folder / "train_images/p1.jpg")
    picture(folder / "train_images/p2.jpg")
    return folder


def gqa(folder: Path) -> Path:
    """Four questions: two open, two binary."""
    asked = [
        ("201307251", "n1.jpg", "Is it overcast?", "no", "verify", "global"),
        ("201640614", "n2.jpg", "Who is wearing the dress?", "woman", "query", "rel"),
        ("202225914", "n1.jpg", "Is the bird red or blue?", "red", "choose", "attr"),
        ("2062325", "n2.jpg", "What is on the table?", "plate", "query", "rel"),
    ]
    lines(
        folder / "llava_gqa_testdev_balanced.jsonl",
        (
            {"question_id": name, "image": image, "text": text + SHORT, "category": "default"}
            for name, image, text, *_ in asked
        ),
    )
    document(
        folder / "testdev_balanced_questions.json",
        {
            name: {
                "imageId": image[:-4],
                "question": text,
                "answer": answer,
                "isBalanced": True,
                "types": {"structural": structural, "semantic": semantic, "detailed": "x"},
            }
            for name, image, text, answer, structural, semantic in asked
        },
    )
    picture(folder / "images/n1.jpg")
    picture(folder / "images/n2.jpg")
    return folder


def scienceqa(folder: Path) -> Path:
    """Four questions, two with a picture; a fifth problem of the split is not in the question file."""
    asked = [
        ("4", None, "Which word fits?\nA. one\nB. two", 2, 1),
        ("5", "5/image.png", "<image>\nWhich colony is shown?\nA. Maine\nB. Ohio\nC. Utah", 3, 0),
        ("11", "11/image.png", "<image>\nContext: a test.\nWhich is it?\nA. x\nB. y", 2, 1),
        ("15", None, "Which is more?\nA. 1\nB. 2\nC. 3\nD. 4", 4, 3),
    ]
    entries = []
    for name, image, text, _, answer in asked:
        entry: dict[str, Any] = {"id": name}
        if image is not None:
            entry["image"] = image
            picture(folder / "images/test" / image)
        entry["conversations"] = [{"from": "human", "value": text}, {"from": "gpt", "value": "ABCDE"[answer]}]
        entries.append(entry)
    document(folder / "llava_test_CQM-A.json", entries)
    problems = {
        name: {"question": text, "choices": list("wxyz")[:choices], "answer": answer, "split": "test"}
        for name, _, text, choices, answer in asked
    }
    problems["99"] = {"question": "?", "choices": ["a", "b"], "answer": 0, "split": "test"}
    document(folder / "problems.json", problems)
    document(folder / "pid_splits.json", {"train": ["1"], "test": [*(row[0] for row in asked), "99"]})
    return folder


def mme(folder: Path) -> Path:
    """OCR with two pictures, artwork with one in its own layout, code reasoning with one."""
    release = folder / "MME_Benchmark_release_version"
    asked = [
        ("OCR", "OCR/0001.jpg", ('Is the word "on"?', "Yes"), ('Is the word "off"?', "No")),
        ("OCR", "OCR/0002.jpg", ("Is it 7?", "Yes"), ("Is it 9?", "No")),
        ("artwork", "artwork/images/14777.jpg", ("Is it a painting?", "Yes"), ("Is it a vase?", "No")),
        ("code_reasoning", "code_reasoning/0020.png", ("Is it python?", "No"), ("Is it c++?", "Yes")),
    ]
    rows = []
    for task, image, *pair in asked:
        picture(release / image)
        rows += [
            {"question_id": image, "image": image, "text": question + SHORT, "category": task}
            for question, _ in pair
        ]
        labels = release / task / ("questions_answers_YN" if "/images/" in image else ".")
        labels.mkdir(exist_ok=True)
        # Some published files have two spaces here.
        gap = "  " if task == "artwork" else " "
        text = "".join(f"{question}{gap}Please answer yes or no.\t{label}\n" for question, label in pair)
        (labels / f"{Path(image).stem}.txt").write_text(text + "\n", "utf-8")
    lines(folder / "llava_mme.jsonl", rows)
    return folder


def mmmu(folder: Path) -> Path:
    """Two choices and a free question with a picture; a choice and a free question without."""
    letters = ["A", "B", "C", "D"]
    options = {"A": "the red bar", "B": "the blue bar", "C": "$6", "D": "all of it"}
    asked: list[tuple[str, str | None, str, Any]] = [
        ("validation_Accounting_1", "validation_Accounting_1_1.png", "multiple-choice", "B"),
        ("validation_Art_Theory_7", "validation_Art_Theory_7_1.png", "multiple-choice", "C"),
        ("validation_Finance_3", "validation_Finance_3_1.png", "open", ["1234.5", "1,234.50"]),
        ("validation_Accounting_2", None, "multiple-choice", "A"),
        ("validation_Finance_4", None, "open", "12"),
    ]
    entries = []
    for name, image, kind, _ in asked:
        entry: dict[str, Any] = {"id": name, "prompt": f"What about {name}?", "question_type": kind}
        if image is not None:
            entry["image"] = image
            picture(folder / "all_images" / image)
        if kind == "multiple-choice":
            entry |= {"all_choices": letters, "index2ans": options}
        entries.append(entry)
    document(folder / "anns_for_eval.json", entries)
    document(
        folder / "eval/answer_dict_val.json",
        {name: {"question_type": kind, "ground_truth": gold} for name, _, kind, gold in asked},
    )
    return folder


def mm_vet(folder: Path) -> Path:
    """Two questions."""
    lines(
        folder / "llava-mm-vet.jsonl",
        (
            {
                "image": f"v1_{i}.png",
                "text": f"What is x in equation {i}?",
                "category": "conv",
                "question_id": i,
            }
            for i in range(2)
        ),
    )
    for i in range(2):
        picture(folder / f"images/v1_{i}.png")
    return folder


def vqav2(folder: Path) -> Path:
    """Two questions of test-dev, in a test set of four."""

    def row(number: int) -> dict[str, Any]:
        return {
            "question_id": number,
            "image": f"COCO_test2015_{number // 1000:012d}.jpg",
            "text": f"What is number {number}?{SHORT}",
            "category": "default",
        }

    numbers = [262144000, 262144001, 262144002, 262145000]
    lines(folder / "llava_vqav2_mscoco_test2015.jsonl", map(row, numbers))
    lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", map(row, numbers[1:3]))
    picture(folder / "test2015/COCO_test2015_000000262144.jpg")
    return folder


MAKE = {
    "pope": pope,
    "textvqa": textvqa,
    "gqa": gqa,
    "scienceqa": scienceqa,
    "mme": mme,
    "mmmu": mmmu,
    "mm-vet": mm_vet,
    "vqav2": vqav2,
}
