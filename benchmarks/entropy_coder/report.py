"""The benchmark's numbers as text."""

from __future__ import annotations

from typing import Any


def text(result: dict[str, Any]) -> str:
    """All tables, one below the other."""
    return "\n\n".join([_bytes(result), _times(result), _so400m(result["so400m"]), _damage(result)])


def _bytes(result: dict[str, Any]) -> str:
    lines = [
        f"bytes a picture of {result['test_scenes']} test scenes, under tables of {result['known_scenes']} "
        "training scenes",
        f"{'quantizer':>9}{'L':>4}{'packed':>8}{'static':>8}{'token':>8}{'channel':>8}{'classes':>8}"
        f"{'coded':>8}{'p95':>6}{'24 pics':>8}{'constr.':>8}{'saves':>7}",
    ]
    for row in result["rows"]:
        size, other = row["cross_entropy_bytes"], row["constriction_bytes_mean"]
        lines.append(
            f"{row['quantizer']:>9}{row['levels']:>4}{row['packed_bytes']:>8}{size['static']:>8.1f}"
            f"{size['previous_token']:>8.1f}{size['previous_channel']:>8.1f}{size['classes']:>8.1f}"
            f"{row['coded_bytes_mean']:>8.1f}{row['coded_bytes_p95']:>6.0f}"
            f"{row['held_out_tables_bytes_mean']:>8.1f}{'-' if other is None else f'{other:.1f}':>8}"
            f"{row['saves_beyond_static']['classes']:>7.0%}"
        )
    lines += [
        "static, token, channel, classes: cross-entropies; coded: payloads; constr.: constriction's, same",
        "tables; 24 pics: tables of as many pictures as a checkpoint holds out; saves: classes beyond static",
    ]
    return "\n".join(lines)


def _times(result: dict[str, Any]) -> str:
    lines = [
        f"milliseconds a picture on one thread; client graph {result['graph_ms']:.2f}",
        f"{'quantizer':>9}{'L':>4}{'encode':>9}{'of graph':>10}{'decode':>9}{'batch enc':>11}"
        f"{'batch dec':>11}   decoding / encoding of batches",
    ]
    lines += [
        f"{row['quantizer']:>9}{row['levels']:>4}{row['encode_ms']:>9.3f}{row['share_of_graph']:>10.1%}"
        f"{row['decode_ms']:>9.3f}{row['encode_batch_ms']:>11.3f}{row['decode_batch_ms']:>11.3f}   "
        + ", ".join(f"{size}: {share:.2f}" for size, share in row["decode_over_encode"].items())
        for row in result["rows"]
    ]
    return "\n".join(lines)


def _so400m(result: dict[str, Any]) -> str:
    graph = "" if result["graph_ms"] is None else f": {result['graph_ms']:.0f} ms"
    lines = [f"729 x 1280 codes of {result['codes']}; client graph {result['graph']}{graph}"]
    for row in result["rows"]:
        share = "" if row["share_of_graph"] is None else f" ({row['share_of_graph']:.2%} of the graph)"
        lines.append(
            f"  L {row['levels']}, {row['classes']} classes, {row['lanes']} lanes: packed "
            f"{row['packed_bytes']:,}, coded {row['coded_bytes']:,.0f} ({row['over']:.2%} over), encode "
            f"{row['encode_ms']:.0f} ms{share}; in batches of {row['batch']}: encode "
            f"{row['encode_batch_ms']:.0f}, decode {row['decode_batch_ms']:.0f}"
        )
    return "\n".join(lines)


def _damage(result: dict[str, Any]) -> str:
    damage, message = result["damage"], result["message"]
    lines = [f"of {damage['corruptions']:,} corruptions each, let pass by the coder alone / by CRC-32:"]
    lines += [
        f"  {name.replace('_', ' ')}: {damage[name]['coder_misses']:.2%} / "
        f"{damage[name]['checksum_misses']:.2%}"
        for name in ("one_bit", "four_bits", "length")
    ]
    lines.append(
        f"message beyond payload and question: {message['overhead']} bytes, {message['overhead_curve']} "
        "under CURVE"
    )
    return "\n".join(lines)
