"""What a half that cannot be loaded says: what to upgrade, or to export again."""

from __future__ import annotations

import msgspec
import pytest

from qtl_core.bundle import Cut, Manifest, Picture, Template, Text
from qtl_core.upgrades import remedy

MANIFEST = Manifest(
    half="server",
    fingerprint="0" * 32,
    model="mine",
    cut=Cut(tokens=1, width=1, code_dim=1, merge=1, levels=2, bits=1, scaling="image", codec="packed",
            payload_bytes=1),
    picture=Picture(height=1, width=1, resample="bicubic", fit="square", pad_colour=(0, 0, 0)),
    text=Text(mode="plain", levels=0, code_dim=0, width=1, max_tokens=1, scaling="none"),
    template=Template(before_image="", between="", after_question=""),
    files={},
)  # fmt: skip


@pytest.mark.parametrize(
    ("made", "here", "newer"),
    [
        ("1.31.1", "1.19.0", True),
        ("1.19.0", "1.31.1", False),
        ("1.31", "1.31.0", False),
        ("1.31.0.1", "1.31", True),
        ("2.13.0+cpu", "2.13.0", False),
        ("5.10.0", "5.9.3", True),
        ("0.2.dev1", "0.1.0", True),
        ("", "1.0", False),
        ("unknown", "1.0", False),
    ],
)
def test_versions(made: str, here: str, newer: bool) -> None:
    manifest = msgspec.structs.replace(MANIFEST, made_by={"onnxruntime": made})
    said = remedy(manifest, {"onnxruntime": here, "qtl-edge": "0.1.0"})
    if newer:
        assert said.startswith("it was made with newer programs: install onnxruntime ")
        assert f"onnxruntime {made} or newer (here is {here})" in said and "qtl-edge" not in said
    else:
        assert said == "export it again"


def test_all_that_are_older_are_named() -> None:
    manifest = msgspec.structs.replace(MANIFEST, made_by={"qtl-edge": "2.0", "transformers": "6.1"})
    said = remedy(manifest, {"qtl-edge": "1.0", "transformers": "5.23.0"}, "wait")
    assert "qtl-edge 2.0 or newer (here is 1.0) and transformers 6.1 or newer" in said
    assert remedy(manifest, {"qtl-edge": "2.0"}, "wait") == "wait"
