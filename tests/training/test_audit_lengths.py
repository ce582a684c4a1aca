"""The eavesdropper: finds a planted leak, and nothing where every message has the same length."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qtl_core import messages as m
from qtl_core.entropy import Tables
from qtl_training.audit import lengths
from qtl_training.audit.information import accuracy, entropy_of, information
from qtl_training.audit.lengths import PROPERTIES, coded_sizes, control, eavesdrop, wordings
from qtl_training.audit.mail import Mail, Sizes

SHUFFLES = 60


def contents(n: int, seed: int, *, empty: bool = False) -> Sizes:
    rng = np.random.default_rng(seed)
    digits = np.zeros(n, np.int64) if empty else rng.integers(1, 10, n)
    colours = np.minimum(digits, rng.integers(1, 7, n))
    return Sizes(np.full(n, 50), digits, colours)


@pytest.fixture(scope="module")
def mail() -> Mail:
    return Mail(contents(900, 1), contents(600, 2), contents(90, 3, empty=True), contents(60, 4, empty=True))


def told(found: dict[str, object], what: str) -> dict[str, float]:
    properties = found["properties"]
    assert isinstance(properties, dict)
    return dict(properties[what])


def test_a_planted_leak_is_found(mail: Mail) -> None:
    found = control(mail, 1, SHUFFLES)
    assert found["accuracy"] == 100
    assert found["leaks"]
    assert found["bits"] == pytest.approx(math.log2(9), abs=0.15)


def test_equal_lengths_tell_exactly_nothing(mail: Mail) -> None:
    found = eavesdrop(mail.at(72), m.CODEC_PACKED, 0, 1, SHUFFLES)
    assert found["length_bits"] == 0
    for what in PROPERTIES:
        one = told(found, what)
        assert one["bits"] == 0 and not one["leaks"]
        assert one["accuracy"] == one["chance"]
    assert told(found, "empty")["chance"] == told(found, "same_picture")["chance"] == 50


def test_lengths_without_a_meaning_are_not_taken_for_one(mail: Mail) -> None:
    rng = np.random.default_rng(7)
    parts = (mail.train, mail.test, mail.empty_train, mail.empty_test)
    noise = mail.sent(*(rng.integers(40, 60, len(part.payload)) for part in parts))
    found = eavesdrop(noise, m.CODEC_RANS, 0, 1, 300)
    assert not told(found, "digits")["leaks"] and not told(found, "empty")["leaks"]
    # That a length depends on the picture at all is enough to tell pictures apart.
    assert told(found, "same_picture")["leaks"]
    assert found["length_bits"] == pytest.approx(math.log2(20), abs=0.1)


def test_padding_hides_only_what_it_makes_equal(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (mail.train, mail.test, mail.empty_train, mail.empty_test)
    telling = mail.sent(*(20 + part.digits for part in parts))

    def behind(question: str, payload: int, codec: int, *, pad: int = 0) -> tuple[int, ...]:
        return (100, payload, pad - payload)

    def inside(question: str, payload: int, codec: int, *, pad: int = 0) -> tuple[int, ...]:
        return (100, -(-payload // pad) * pad)

    monkeypatch.setattr(lengths, "frame_lengths", behind)  # as long in all, and the parts still show
    assert told(eavesdrop(telling, m.CODEC_RANS, 64, 1, SHUFFLES), "digits")["accuracy"] == 100
    monkeypatch.setattr(lengths, "frame_lengths", inside)
    found = eavesdrop(telling, m.CODEC_RANS, 64, 1, SHUFFLES)
    assert not any(told(found, what)["leaks"] for what in PROPERTIES)


def test_information_of_what_is_equal_independent_and_constant() -> None:
    rng = np.random.default_rng(5)
    coin, other = rng.integers(0, 2, (2, 2000))
    bits, leaks = information(coin, coin, rng, SHUFFLES)
    assert leaks and bits == pytest.approx(1, abs=0.01)
    assert information(np.zeros(2000, np.int64), coin, rng, SHUFFLES) == (0.0, False)
    independent, _ = information(other, coin, rng, 300)
    assert independent < 0.01
    assert entropy_of(np.repeat(np.arange(8), 3)) == pytest.approx(3)


def test_accuracy_is_chance_where_nothing_differs_and_more_where_it_does() -> None:
    about = np.repeat(np.array([0, 1, 1]), 50)
    same = np.zeros((150, 1), np.int64)
    right, chance = accuracy(same, about, same, about)
    assert right == chance == pytest.approx(200 / 3)
    telling = about[:, None] * 10
    assert accuracy(telling, about, telling, about)[0] == 100


def test_what_is_sent_is_the_smaller_of_the_two() -> None:
    rng = np.random.default_rng(6)
    skewed = (rng.random((400, 9, 4)) < 0.03).astype(np.uint8)
    tables = Tables.fit(skewed, 2)
    sizes = coded_sizes(torch.from_numpy(skewed[:40]), tables, packed=5)
    assert sizes.max() <= 5 and len(set(sizes.tolist())) > 1
    unlikely = torch.ones(1, 9, 4, dtype=torch.uint8)
    assert coded_sizes(unlikely, tables, packed=5).tolist() == [5]


def test_questions_span_the_lengths_there_are() -> None:
    found = [len(text.encode()) for text in wordings()]
    assert found == sorted(set(found)) and len(found) >= 4
