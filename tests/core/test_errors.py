"""The error tree, its exit codes, and the two pages that print them."""

from __future__ import annotations

import copy
import inspect
import re
from importlib import metadata
from pathlib import Path

import pytest

from qtl_core import errors, messages
from qtl_core.errors import MissingExtra, ProtocolError, QtlError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"


def _tree() -> dict[str, type[QtlError]]:
    found = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    return {name: kind for name, kind in found.items() if issubclass(kind, QtlError)}


CODES = {
    "QtlError": 1,
    "InputError": 3,
    "ArtifactError": 4,
    "LinkError": 5,
    "RefusedError": 6,
    "ProtocolError": 7,
    "MissingExtra": 8,
    "HostError": 9,
}


@pytest.mark.parametrize("kind", _tree().values(), ids=_tree().keys())
def test_every_error_exits_with_the_code_of_its_branch(kind: type[QtlError]) -> None:
    branch = next(parent for parent in kind.__mro__ if parent.__name__ in CODES)
    assert kind.exit_code == CODES[branch.__name__]


def test_the_drawing_shows_every_error_under_its_parent_with_its_code() -> None:
    drawn = re.findall(r"^ {4}([│├└─ ]*)(\w+) +(\d*)", errors.__doc__ or "", re.MULTILINE)
    path: list[str] = []
    seen = set()
    for rails, name, code in drawn:
        del path[len(rails) // 4 :]
        kind = _tree()[name]
        assert kind.__mro__[1].__name__ == (path[-1] if path else "Exception")
        if code:
            assert kind.exit_code == int(code)
        path.append(name)
        seen.add(name)
    assert seen == set(_tree())


def test_the_page_has_every_error_and_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE.read_text(), re.MULTILINE))
    assert rows == {name: str(kind.exit_code) for name, kind in _tree().items() if name != "QtlError"}


def test_wire_codes_are_ones_the_protocol_knows() -> None:
    for kind in _tree().values():
        if issubclass(kind, ProtocolError):
            assert kind.wire_code in messages.ERROR_CODES


@pytest.mark.parametrize(
    "error",
    [
        errors.HandshakeRefused("fingerprint", "not the same"),
        errors.ServerBusy("still busy", 250),
        errors.RequestRefused("codes", "bad codes"),
        errors.CodeError("bad codes"),
        errors.PictureError("bad picture"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_their_message_and_survive_a_copy(error: QtlError) -> None:
    twin = copy.copy(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)
    assert "(" not in str(error)


def test_missing_extra_quotes_the_exact_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {})
    error = MissingExtra.of("server", "torch")
    assert 'pip install "qtl-edge[server]"' in str(error)
    assert "'torch'" in str(error)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"qtl_core": ["renamed"]})
    assert 'pip install "renamed[text]"' in str(MissingExtra.of("text", "tokenizers"))
