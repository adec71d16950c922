"""Mutated caffemodels: the records of the wire format, spliced, doubled and lied about.

The walker here knows no more of protobuf than it needs to take a file apart that is
whole, and to put its records together again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from support.wire import run, varint

__all__ = ["Record", "joined", "mutated", "records"]

# Which fields of a message are messages, by the kind of the message.
_INSIDE: dict[str, dict[int, str]] = {
    "net": {2: "v1", 100: "layer"},
    "layer": {6: "param", 7: "blob", 8: "rule"},
    "v1": {6: "blob", 1: "v0"},
    "blob": {7: "shape"},
}
_FLOATS = {5: "<f", 6: "<f", 8: "<d", 9: "<d"}


@dataclass
class Record:
    """One field: its number, wire type and value, and the records in it if it is a message.

    ``raw`` stands in its place where it lies about itself.
    """

    number: int
    wire_type: int
    value: bytes
    kind: str = ""
    inside: list[Record] = field(default_factory=list)
    raw: bytes | None = None

    def bytes(self) -> bytes:
        """The field as it stands in a file."""
        if self.raw is not None:
            return self.raw
        tag = varint(self.number << 3 | self.wire_type)
        value = joined(self.inside) if self.kind else self.value
        return tag + (varint(len(value)) if self.wire_type == 2 else b"") + value


def joined(parts: Sequence[Record]) -> bytes:
    """Records one behind the other."""
    return b"".join(part.bytes() for part in parts)


def records(data: bytes, kind: str = "net") -> list[Record]:
    """The records of a whole message."""
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        end = at
        if wire_type == 2:
            size, at = _varint(data, at)
            end = at + size
        elif wire_type == 0:
            _, end = _varint(data, at)
        elif wire_type in (1, 5):
            end = at + (8 if wire_type == 1 else 4)
        else:
            raise ValueError(f"a wire type that no seed has: {wire_type}")
        inside = _INSIDE.get(kind, {}).get(number, "") if wire_type == 2 else ""
        value = data[at:end]
        found.append(
            Record(number, wire_type, value, inside, records(value, inside) if inside else [])
        )
        at = end
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


INTEGERS = (
    0, 1, 2, 3, 4, 5, 127, 128, 255, 1 << 20, 10**9, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
    1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 4,
)  # fmt: skip
# Varints that no encoder writes: with more bytes than they need, of 10 and of 11 bytes.
LONG_VARINTS = (
    b"\x80\x00", b"\x81\x80\x80\x00", b"\xff" * 9 + b"\x01", b"\x80" * 9 + b"\x00",
    b"\x81" + b"\x80" * 8 + b"\x02", b"\xff" * 9 + b"\x7f", b"\x80" * 10 + b"\x00",
    b"\xff" * 10 + b"\x01", b"\xff" * 11, b"\x80",
)  # fmt: skip
NAMES = (
    b"", b"x", b"\xff\xfe", b"../../x", b"/dev/zero", b"a/b", b"a\nb", b"\x1b[31m", b"\0",
    "\u4e2d".encode(), b"conv1", b"bn1",
)  # fmt: skip
REALS = (
    0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 1e-38, 3e38, -3e38,
    1e10, 65504.0, 1e-8,
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15, 16, 100, 149, 1000, (1 << 29) - 1, 1 << 29)


def mutated(data: bytes, rng: Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four mutations of a whole file; ``others`` lend it records."""
    if rng.random() < 0.0002:
        return _huge(data, rng)
    made = records(data)
    for _ in range(1 + int(rng.random() * rng.random() * 4)):
        _mutate(made, rng, others)
    result = joined(made)
    return _spoiled(result, made, rng) if rng.random() < 0.3 else result


def _mutate(top: list[Record], rng: Random, others: Sequence[bytes]) -> None:
    siblings = _messages(top, rng)
    if not siblings:
        siblings.append(_any_record(rng))
        return
    at = rng.randrange(len(siblings))
    what = rng.randrange(10)
    if what == 0:
        del siblings[at]
    elif what == 1:
        siblings.insert(rng.randrange(len(siblings) + 1), siblings[at])
    elif what == 2:
        other = rng.randrange(len(siblings))
        siblings[at], siblings[other] = siblings[other], siblings[at]
    elif what == 3:
        siblings.insert(at, _any_record(rng))
    elif what == 4 and others:
        lender = _messages(records(rng.choice(others)), rng)
        if lender:
            siblings.insert(at, rng.choice(lender))
    elif what == 5:
        siblings[at] = _copy(siblings[at], number=rng.choice(NUMBERS))
    elif what == 6:
        siblings[at] = _copy(siblings[at], raw=_lie(siblings[at], rng))
    elif what == 7:
        _repack(siblings, at, rng)
    else:
        siblings[at] = _changed(siblings[at], rng)


def _copy(
    record: Record,
    number: int | None = None,
    wire_type: int | None = None,
    value: bytes | None = None,
    raw: bytes | None = None,
) -> Record:
    return Record(
        record.number if number is None else number,
        record.wire_type if wire_type is None else wire_type,
        record.value if value is None else value,
        "" if value is not None else record.kind,
        record.inside,
        record.raw if raw is None else raw,
    )


def _messages(top: list[Record], rng: Random) -> list[Record]:
    """The records of one message, at any depth."""
    chosen = top
    while True:
        inner = [record for record in chosen if record.kind]
        if not inner or rng.random() < 0.25:
            return chosen
        one = rng.choice(inner)
        one.inside = list(one.inside)  # it may stand in the file twice
        chosen = one.inside


def _any_record(rng: Random) -> Record:
    """A field of any kind, groups and reserved wire types among them."""
    number = rng.choice(NUMBERS)
    what = rng.randrange(7)
    if what == 0:
        return Record(number, 0, varint(rng.choice(INTEGERS)))
    if what == 1:
        return Record(number, 5, struct.pack("<f", rng.choice(REALS)))
    if what == 2:
        return Record(number, 1, struct.pack("<d", rng.choice(REALS)))
    if what == 3:
        return Record(number, 2, rng.choice(NAMES))
    if what == 4:
        inner = _any_record(rng).bytes() if rng.random() < 0.7 else b""
        end = varint((number if rng.random() < 0.8 else number + 1) << 3 | 4)
        return Record(number, 3, inner + (end if rng.random() < 0.9 else b""))
    if what == 5:
        return Record(number, rng.choice((4, 6, 7)), b"")
    return Record(number, 0, rng.choice(LONG_VARINTS))


def _lie(record: Record, rng: Random) -> bytes:
    """The record with another wire type, another length, or a long tag."""
    value = joined(record.inside) if record.kind else record.value
    tag = varint(record.number << 3 | record.wire_type)
    what = rng.randrange(5)
    if what == 0:
        return varint(record.number << 3 | rng.randrange(8)) + record.bytes()[len(tag) :]
    if what == 1:
        size = max(0, len(value) + rng.choice((-9, -4, -1, 1, 4, 9)))
        return tag + varint(size) + value
    if what == 2:
        return tag + varint(rng.choice(INTEGERS)) + value
    if what == 3:
        return tag + rng.choice(LONG_VARINTS) + value
    long = bytes([*(byte | 0x80 for byte in tag), 0x80, 0])
    return long + record.bytes()[len(tag) :]


def _repack(siblings: list[Record], at: int, rng: Random) -> None:
    """Values in another form: unpacked, split in two, or as a double."""
    record = siblings[at]
    form = _FLOATS.get(record.number)
    if form is None or record.wire_type != 2 or record.kind or record.raw is not None:
        return
    size = struct.calcsize(form)
    values = [record.value[i : i + size] for i in range(0, len(record.value) - size + 1, size)]
    if rng.random() < 0.5 and len(values) < 200:
        single = 5 if size == 4 else 1
        siblings[at : at + 1] = [Record(record.number, single, value) for value in values]
    else:
        cut = size * rng.randrange(len(values) + 1)
        halves = (record.value[:cut], record.value[cut:])
        siblings[at : at + 1] = [Record(record.number, 2, half) for half in halves]


def _changed(record: Record, rng: Random) -> Record:
    """Another value of the same kind."""
    if record.wire_type == 0:
        value = varint(rng.choice(INTEGERS)) if rng.random() < 0.8 else rng.choice(LONG_VARINTS)
        return _copy(record, value=value)
    form = _FLOATS.get(record.number)
    if form and record.wire_type in (1, 2, 5) and not record.kind and record.value:
        return _copy(record, value=_other_reals(record.value, form, rng))
    if record.kind == "shape" or (record.wire_type == 2 and len(record.value) % 4):
        dims = b"".join(varint(rng.choice(INTEGERS[:9])) for _ in range(rng.randrange(6)))
        if rng.random() < 0.2:
            dims += rng.choice(LONG_VARINTS) + varint(rng.choice(INTEGERS))
        return _copy(record, value=run(1, dims) if record.kind else rng.choice((dims, *NAMES)))
    if record.wire_type == 2 and not record.kind:
        return _copy(record, value=rng.choice(NAMES))
    return _copy(record, raw=_lie(record, rng))


def _other_reals(value: bytes, form: str, rng: Random) -> bytes:
    size = struct.calcsize(form)
    if rng.random() < 0.1:
        return value[: rng.randrange(len(value) + 1)]
    made = bytearray(value)
    for _ in range(rng.randrange(1, 4)):
        at = size * rng.randrange(max(1, len(made) // size))
        if rng.random() < 0.5 and len(made) >= at + size:
            made[at : at + size] = struct.pack(form, rng.choice(REALS))
        else:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _spoiled(data: bytes, parts: Sequence[Record], rng: Random) -> bytes:
    """Bits flipped, or the file cut: at the border of a field, or anywhere."""
    what = rng.randrange(4)
    if what == 0:
        return data[: rng.randrange(len(data) + 1)]
    if what == 1:
        return data[: rng.choice(_borders(parts))]
    if what == 2:
        return data + bytes(rng.randrange(256) for _ in range(rng.randrange(6)))
    made = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        if made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _borders(parts: Sequence[Record], start: int = 0) -> list[int]:
    """Where fields begin and end, at any depth."""
    found = [start]
    for part in parts:
        whole = part.bytes()
        if part.kind and part.raw is None:
            found += _borders(part.inside, start + len(whole) - len(joined(part.inside)))
        start += len(whole)
        found.append(start)
    return found


def _huge(data: bytes, rng: Random) -> bytes:
    """What is far too long, too deep or too big; these cost time and are few."""
    deep, name = 100_000, b"x" * 1_000_000
    nested = b""
    for _ in range(200):
        nested = run(100, nested)
    billion = run(7, run(1, varint(10**9)))
    return data + rng.choice(
        (
            b"\x0b" * deep + b"\x0c" * deep,
            b"\x0b" * deep,
            run(100, b"\x0b" * 99 + b"\x0c" * 99),
            nested,
            run(100, run(1, name) + run(2, name) + run(3, name)),
            run(100, run(7, billion)),
            run(100, run(7, billion + run(5, b""))),
            run(100, run(7, run(7, run(1, varint(1 << 62) * deep)))),
            run(100, run(7, run(7, b"\x08\x01" * deep))),
            run(100, b"".join(run(3, b"x") for _ in range(deep))),
            b"".join(run(100, b"") for _ in range(deep // 10)),
            run(100, b"".join(run(7, b"") for _ in range(deep // 10))),
            b"\xa2\x06" + varint(1 << 50),
        )
    )
