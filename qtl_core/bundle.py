"""The bundle on disk: two halves, each a directory with a typed manifest, checked before anything is loaded.

Hashes detect damage and mix-ups, not an attacker: whoever can write the directory can write the manifest too.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from .codes import MAX_LEVELS, MIN_LEVELS, bits_of, packed_size
from .errors import BundleError
from .tiling import MAX_TILES, Tiling

SCHEMA: Final = 1
"""Version of the manifest. A reader refuses newer ones; new optional fields do not change it."""
MANIFEST: Final = "manifest.json"
MAX_MANIFEST: Final = 4 * 1024 * 1024
"""Bytes of a manifest at most; one that is larger is no manifest."""

UNQUANTIZED_BITS: Final = 16

HalfName: TypeAlias = Literal["client", "server"]
Size: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Hex: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Sha256: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Byte: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
Scaling: TypeAlias = Literal["image", "frozen", "none"]
Resample: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

# Files a program would load. One that the manifest does not list has no hash: somebody put it there later.
_LOADABLE: Final = frozenset(
    {".onnx", ".ort", ".data", ".safetensors", ".npz", ".npy", ".bin", ".pt", ".pth", ".pkl"}
)


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """What crosses the cut for one picture; of a tiled picture, for each of its tiles.

    Attributes:
        tokens: tokens as coded, after the merge.
        width: width of the features on both sides of the quantizer, before the merge.
        code_dim: codes per coded token.
        merge: m, where m x m neighbouring tokens are coded as one.
        levels: L, 2 to 256; 0 means no quantizer.
        bits: bits per code, ``ceil(log2 L)``; 16 without a quantizer.
        scaling: "image", "frozen", or "none" without a quantizer.
        codec: "packed" codes or "float16" features.
        payload_bytes: bytes of one picture's payload frame.
    """

    tokens: Size
    width: Size
    code_dim: Size
    merge: Annotated[int, Meta(ge=1, le=16)]
    levels: Annotated[int, Meta(ge=0, le=MAX_LEVELS)]
    bits: Annotated[int, Meta(ge=1, le=UNQUANTIZED_BITS)]
    scaling: Scaling
    codec: Literal["packed", "float16"]
    payload_bytes: Size

    def __post_init__(self) -> None:
        quantized = self.levels != 0
        if quantized and self.levels < MIN_LEVELS:
            raise ValueError(f"levels must be 0 or from {MIN_LEVELS} to {MAX_LEVELS}, not {self.levels}")
        if quantized != (self.codec == "packed"):
            raise ValueError(f"codec {self.codec!r} does not go with {self.levels} levels")
        bits = bits_of(self.levels) if quantized else UNQUANTIZED_BITS
        if self.bits != bits:
            raise ValueError(f"{self.levels} levels take {bits} bits a code, not {self.bits}")
        n_codes = self.tokens * self.code_dim
        size = packed_size(n_codes, self.levels) if quantized else 2 * n_codes
        if self.payload_bytes != size:
            raise ValueError(f"this cut's payload takes {size} bytes, not {self.payload_bytes}")

    @property
    def quantized(self) -> bool:
        """Whether codes cross the cut, and not half-precision features."""
        return self.levels != 0

    @property
    def picture_tokens(self) -> int:
        """Tokens the decoder sees: the coded ones, split again."""
        return self.tokens * self.merge**2

    @property
    def feature_bytes_16bit(self) -> int:
        """Bytes of the same picture's features at 16 bit, the yardstick of every table."""
        return self.picture_tokens * self.width * 2


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """How a picture becomes the graph's uint8 [height, width, 3] input, with Pillow.

    Attributes:
        height: of the graph's input, in pixels.
        width: of the graph's input, in pixels.
        resample: Pillow's filter.
        fit: "square" stretches the picture; "pad" first pads it, centred, to a square; "crop" resizes it
            until its shorter side fits, and cuts off what is over on both ends of the longer one.
        pad_colour: RGB of the padding.
        max_pixels: pictures with more pixels than this are refused before they are decoded.
        resized: height and width it is resized to where these are not the graph's (for "crop" the shorter
            side, twice): then the middle is taken, with black around it where it is too small.
        tiling: how a picture becomes several inputs of the graph; None where it is one. Each tile is then a
            picture to the graph: ``Cut`` is of one tile, and "image" scaling is over one tile.
    """

    height: Size
    width: Size
    resample: Resample
    fit: Literal["square", "pad", "crop"]
    pad_colour: tuple[Byte, Byte, Byte]
    max_pixels: Size = 50_000_000
    resized: tuple[Size, Size] | None = None
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        if self.tiling is not None and (self.height != self.width or self.fit != "square"):
            raise ValueError("only square tiles can be cut, and they are stretched")
        if self.most_tiles > MAX_TILES:
            raise ValueError(f"{self.most_tiles} tiles a picture are more than the {MAX_TILES} there may be")

    @property
    def most_tiles(self) -> int:
        """Tiles a picture has at most; 1 where it is never cut."""
        return 1 if self.tiling is None else self.tiling.most(self.width)

    @property
    def tiled(self) -> bool:
        """Whether a picture's size decides how many tiles it has, so that the server has to know it."""
        return self.most_tiles > 1

    def tiles(self, width: int, height: int) -> int:
        """How many tiles a picture of ``width`` x ``height`` pixels has."""
        return self.tiling.tiles(width, height, self.width) if self.tiling is not None else 1


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """How a question crosses the cut.

    Attributes:
        mode: "plain" UTF-8 text, or "codes" of quantized embeddings.
        levels: L of the language quantizer; 0 for plain text.
        code_dim: codes per token; 0 for plain text.
        width: width of the decoder's embeddings.
        max_tokens: tokens of the longest question.
        scaling: of the language quantizer; "none" for plain text.
    """

    mode: Literal["plain", "codes"]
    levels: Annotated[int, Meta(ge=0, le=MAX_LEVELS)]
    code_dim: Count
    width: Size
    max_tokens: Size
    scaling: Scaling

    def __post_init__(self) -> None:
        if self.mode == "codes" and (self.levels < MIN_LEVELS or self.code_dim < 1):
            raise ValueError(f"text mode 'codes' needs 2 to 256 levels and a code_dim, not {self.levels}")


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt: ``before_image + <picture tokens> + between + question + after_question``.

    Where questions cross as codes each piece is tokenised on its own, the question too. Where they cross as
    text the server half says how the pieces are joined (``qtl_core.nn.prompt_tokens``).
    """

    before_image: str
    between: str
    after_question: str


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Size in bytes and SHA-256 (lower-case hex) of one file of a half."""

    size: Count
    sha256: Sha256


class VariantEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A further graph of the client half, for particular devices, and what validation found of it.

    Attributes:
        graph: its file.
        weights: the file of its weights where they are not in the graph's own; empty if they are.
        passed: whether it was within its bounds; one that was not was put there by force.
        share_bound: share of codes (or features) that may differ from full precision.
        largest_bound: by how much one may: levels; of features, over the largest feature.
        measured: what validation measured, numbers and the settings they belong to.
    """

    graph: str
    weights: str = ""
    passed: bool = False
    share_bound: Annotated[float, Meta(ge=0, le=1)] = 0.0
    largest_bound: Annotated[float, Meta(ge=0)] = 1.0
    measured: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``manifest.json`` of one half.

    Attributes:
        half: which half this is.
        fingerprint: of the pair, 32 hex digits; the two ends compare it at the handshake.
        model: name of the model, for people.
        files: every other file of the half by its path inside it, with "/" between folders.
        graph: the client half's ONNX graph.
        tables: digest of the entropy coder's tables in ``entropy.npz``, 16 hex digits; empty where the half
            has none. They are not part of the fingerprint: the handshake compares this digest.
        made_by: versions of the programs that made it, opset and IR version included.
        validation: what validation measured, numbers and the settings they belong to.
        gflop: floating-point operations of the client graph for one picture, in 1e9 (a multiplication and an
            addition are two); 0 where nobody counted, and in the server half.
        schema: version of this layout.
        variants: the client half's further graphs by name.
    """

    half: HalfName
    fingerprint: Hex
    model: str
    cut: Cut
    picture: Picture
    text: Text
    template: Template
    files: dict[str, FileEntry]
    graph: str = "client.onnx"
    tables: Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?\Z")] = ""
    made_by: dict[str, str] = {}
    validation: dict[str, Any] = {}
    gflop: Annotated[float, Meta(ge=0)] = 0.0
    schema: int = SCHEMA
    variants: dict[str, VariantEntry] = {}

    @property
    def fingerprint_bytes(self) -> bytes:
        """The fingerprint as the handshake carries it, 16 bytes."""
        return bytes.fromhex(self.fingerprint)


@dataclass(frozen=True)
class Half:
    """One half of a bundle whose files have been checked.

    Attributes:
        path: its directory.
        manifest: what it says about itself.
    """

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists.

        Raises:
            BundleError: it lists no such file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"the {self.manifest.half} half at {self.path} has no {name}; export it again")
        return self.path / name


def fingerprint(
    cut: Cut, picture: Picture, text: Text, template: Template, client_sha: str, server_sha: str
) -> str:
    """The pair's fingerprint: 32 hex digits of SHA-256 over everything both halves must agree on.

    Args:
        cut: what crosses the cut.
        picture: how pictures are prepared.
        text: how questions cross.
        template: the prompt.
        client_sha: SHA-256 of the client graph, hex.
        server_sha: SHA-256 of the server's weights, hex.
    """
    agreement = msgspec.to_builtins([cut, picture, text, template, client_sha, server_sha])
    # It came later: bundles that do not use it keep the fingerprint they have.
    if picture.resized is None:
        del agreement[1]["resized"]
    if picture.tiling is None:
        del agreement[1]["tiling"]  # so that a bundle of before tiles keeps its fingerprint
    text_form = json.dumps(agreement, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text_form.encode()).hexdigest()[:32]


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of one file, read in pieces.

    Raises:
        BundleError: the file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    return FileEntry(size=size, sha256=digest.hexdigest())


def hash_files(folder: Path, known: Mapping[str, FileEntry] | None = None) -> dict[str, FileEntry]:
    """Size and SHA-256 of every file in a half but its manifest, by path inside it, sorted.

    Args:
        folder: the half.
        known: files that were hashed while they were written; taken as they are, not read again.

    Raises:
        BundleError: a link or special file lies in the folder.
    """
    entries: dict[str, FileEntry] = {}
    for name in sorted(_names(folder)):
        if name != MANIFEST:
            path = _inside(folder, name)
            entries[name] = known[name] if known and name in known else hash_file(path)
    return entries


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Writes ``manifest.json`` into a half, last and in one step: a half with a manifest is complete.

    Returns:
        The path of the manifest.
    """
    path, fresh = folder / MANIFEST, folder / (MANIFEST + ".new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    os.replace(fresh, path)
    return path


def open_half(path: str | os.PathLike[str], half: HalfName) -> Half:
    """Opens and checks one half of a bundle.

    Args:
        path: the half itself, or the bundle that holds ``client/`` and ``server/``.
        half: which half is wanted.

    Raises:
        BundleError: missing, no manifest, a schema this version does not know, the wrong half, a file that
            is missing, changed, or outside the directory, or a loadable file that the manifest does not list.
    """
    folder = _find(Path(path), half)
    manifest = _read_manifest(folder / MANIFEST)
    if manifest.half != half:
        raise BundleError(f"{folder} is the {manifest.half} half of a bundle; give the {half} half here")
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    for name in _names(folder):
        if PurePosixPath(name).suffix.lower() in _LOADABLE and name not in manifest.files:
            raise BundleError(f"{folder / name} is not listed in the manifest; remove it or export again")
    if half == "client" and manifest.graph not in manifest.files:
        raise BundleError(
            f"the manifest in {folder} does not list its graph {manifest.graph!r}; export again"
        )
    return Half(folder, manifest)


def _find(path: Path, half: HalfName) -> Path:
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise BundleError(f"the bundle {path} {what}; make one with: qtl-export --bits 2 -o {path}")
    # Resolved once, so that a link to the whole half (`current -> v3`) is fine and links inside it are not.
    folder = path.resolve()
    if (folder / MANIFEST).is_file():
        return folder
    if (folder / half / MANIFEST).is_file():
        return (folder / half).resolve()
    raise BundleError(
        f"{path} holds no {MANIFEST} and no {half}/{MANIFEST}; give a bundle or its {half} half"
    )


class _Version(msgspec.Struct):
    schema: int


def _read_manifest(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_MANIFEST:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST} bytes, so it is no manifest; export again")
    try:
        # The version alone first: a newer layout should say so, and not which field it misses.
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema != SCHEMA:
            remedy = "install a newer qtl-edge" if schema > SCHEMA else "export the bundle again"
            raise BundleError(f"{path} has schema {schema}, this version reads {SCHEMA}; {remedy}")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BundleError(f"{path} is no valid manifest: {error}; export the bundle again") from error


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = _inside(folder, name)
    size = path.stat().st_size
    if size != entry.size:
        raise BundleError(f"{path} has {size} bytes, the manifest says {entry.size}; copy the bundle again")
    if hash_file(path).sha256 != entry.sha256:
        raise BundleError(f"{path} is not the file the manifest describes (SHA-256 differs); copy it again")


def _inside(folder: Path, name: str) -> Path:
    """The regular file ``name`` of ``folder``, if no part of the name leads out of it."""
    parts = name.split("/")
    # Windows reads backslashes and drive letters in a path; nothing we write has either.
    if not name or any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\:\0"):
        raise BundleError(f"the manifest in {folder} names {name!r}, which is no path inside the bundle")
    path = folder
    try:
        for part in parts:
            path = path / part
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise BundleError(
                    f"{path} is a symbolic link; copy the bundle with its links followed (cp -rL)"
                )
    except OSError as error:
        raise BundleError(f"{folder / name} is missing; copy or export the bundle again") from error
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path} is no regular file; copy or export the bundle again")
    return path


def _names(folder: Path) -> list[str]:
    """Every file below ``folder`` by its path inside it; links to directories are named, not followed."""
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files + links]
    return names
