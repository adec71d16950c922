"""Mutated prototxts: by bytes, by tokens, and by whole fields of the grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Callable

__all__ = ["mutated"]

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]* | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*'
      | [A-Za-z_][A-Za-z0-9_]* | [0-9.][0-9A-Za-z_.]* | .""",
    re.VERBOSE | re.DOTALL,
)
_CLOSERS = {"{": "}", "<": ">", "[": "]"}

NUMBERS = (
    "0 1 2 3 4 -1 -2 010 09 0x10 0X7fffffff 1.5 .5 1. 1e5 1.f 1e400 -1e400 1e-400 inf -inf nan "
    "INF infinity 2147483647 2147483648 -2147483649 4294967295 4294967296 9223372036854775807 "
    "9223372036854775808 18446744073709551616 1000000000 -0 -0.0 - 1 1_0 0b1 0o7 1e 0x ++1 1u 1L"
).split(" ")
NUMBERS += ["9" * 30, "9" * 5000, "0x" + "f" * 5000, "1." + "0" * 5000, "- 1", "-\n1", "- #\n1"]

STRINGS = (
    '""', "''", '"x"', "'x'", '"\\x41"', '"\\101"', '"\\400"', '"\\u0041"', '"\\U0001F600"',
    '"\\ud800"', '"\\U99999999"', '"\\q"', '"\\"', '"\\\x07"', '"\x1b[31m"', '"\xff"', '"\\377"',
    '"\xc3\xa4"', '"a" "b"', "'a'\n\"b\"", '"a" # c\n "b"', '"../../etc/passwd"', '"/dev/zero"',
    '"a/b"', '"C:\\\\x"', '"{"', '"}"', '"#"', '"\t"', '"\x00"', '"\\0"', '"\\n"', '"\\r\\n"',
    '"Convolution"', '"BatchNorm"', '"Scale"', '"Bias"', '"Power"', '"Input"', '"InnerProduct"',
    '"Deconvolution"', '"ReLU"', '"Dropout"', '"Split"', '"BN"', '"CuDNNBatchNorm"', '"Eltwise"',
)  # fmt: skip

WORDS = (
    "true false True f t TRAIN TEST CAFFE CUDNN DEFAULT PERMISSIVE STRICT MAX name type bottom top "
    "layer layers param include exclude phase stage not_stage min_level max_level loss_weight "
    "input input_dim input_shape state dim shape convolution_param num_output bias_term "
    "kernel_size kernel_h kernel_w pad stride group dilation axis num_axes engine transpose "
    "inner_product_param "
    "batch_norm_param use_global_stats eps moving_average_fraction scale_param bias_param "
    "power_param power scale shift share_mode blobs blobs_lr quantization_param relu weight_filler "
    "CONVOLUTION RELU BN POWER INNER_PRODUCT _ x scale_bias use_weight_bias bn_mode INFERENCE"
).split()

FIELDS = (
    "bias_term: false", "num_output: 4", "group: 2", "axis: -1", "axis: 2", "num_axes: 0",
    "num_axes: -1", "eps: 0", "eps: -1", "eps: nan", "power: 2", "scale: 0", "shift: 1e30",
    "use_global_stats: false", "include { phase: TRAIN }", "exclude { phase: TEST }",
    "include { stage: 'x' }", "loss_weight: 1", "param { name: 'w' }", "param { lr_mult: 0 }",
    "phase: TRAIN", "x_param { relu: true }", "relu: true", "pad: 1", "pad: 0 pad: 1",
    "dilation: 2", "top: 'x'", "bottom: 'x'", "blobs { data: 1 }", "propagate_down: true",
    "transpose: true", "convolution_param { }", "[a.b/c] { x: 1 }", "[ a ]: 1", "x: [1, 2]",
    "x: [ { a: 1 }, < b: 2 > ]", "x: []", "x < y: -z >", "1: 2", "x { # }\n }", "engine: CAFFE",
    "engine: MKL2017", "engine: 99", "state { phase: TEST level: 1 stage: 's' }",
    "input: 'data2'", "input_dim: 4", "input_shape { dim: 1 }",
)  # fmt: skip

INSERTS = (
    "\n", " ", "\t", "\r", "\r\n", "\f", "\v", "\x00", "\x1c", "\x85", "\xa0", "\xff",
    "\xef\xbb\xbf", "\xe2\x80\xa8", "{", "}", "<", ">", "[", "]", ":", ",", ";", ";;", "#", "# x\n",
    '"', "'", "\\", "-", "+", ".", "/", "\xc3\xa4",
)  # fmt: skip


def mutated(data: bytes, rng: Random, others: Sequence[bytes] = ()) -> bytes:
    """One to five mutations of a text; ``others`` lend it fields."""
    if rng.random() < 0.0002:
        return _huge(data.decode("latin-1"), rng).encode("latin-1")
    tokens = _TOKEN.findall(data.decode("latin-1"))
    for _ in range(1 + int(rng.random() * rng.random() * 5)):
        tokens = rng.choice(_STEPS)(tokens, rng, others) or tokens
    made = "".join(tokens).encode("latin-1")
    return rng.choice(_BYTES)(made, rng) if rng.random() < 0.15 else made


# ---- Tokens ----


def _delete(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    at = _place(tokens, rng)
    return tokens[:at] + tokens[at + 1 :]


def _double(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    at = _place(tokens, rng)
    return tokens[:at] + tokens[at : at + 1] + tokens[at:]


def _swap(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    if not tokens:
        return tokens
    a, b, made = _place(tokens, rng), _place(tokens, rng), list(tokens)
    made[a], made[b] = made[b], made[a]
    return made


def _insert(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    at = _place(tokens, rng)
    return [*tokens[:at], rng.choice(INSERTS), *tokens[at:]]


def _change(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    """Another token of the same kind: a number, a string, a word, a bracket."""
    if not tokens:
        return tokens
    made = list(tokens)
    kind = rng.choice((_is_number, _is_string, _is_word, str.strip))
    places = [at for at, token in enumerate(made) if kind(token)]
    if places:
        at = rng.choice(places)
        made[at] = _other(made[at], made, rng)
    return made


def _other(token: str, tokens: list[str], rng: Random) -> str:
    if rng.random() < 0.3:
        return rng.choice([t for t in tokens if not t.isspace()])
    if _is_number(token):
        return rng.choice(NUMBERS)
    if _is_string(token):
        if rng.random() < 0.4:
            return rng.choice([t for t in tokens if _is_string(t)])
        return rng.choice(STRINGS)
    if _is_word(token):
        return rng.choice(WORDS)
    return rng.choice("{}<>[]:,;")


def _is_number(token: str) -> bool:
    return token[0].isdigit()


def _is_string(token: str) -> bool:
    return token[0] in "\"'"


def _is_word(token: str) -> bool:
    return token[0].isalpha() or token[0] == "_"


def _rename(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    """One string everywhere, to another: a blob, a layer or a type."""
    strings = sorted({token for token in tokens if _is_string(token)})
    if not strings:
        return tokens
    old = rng.choice(strings)
    new = rng.choice(strings) if rng.random() < 0.5 else rng.choice(STRINGS)
    return [new if token == old else token for token in tokens]


def _truncate(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    return tokens[: _place(tokens, rng)]


def _spaces(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    """Other white space everywhere, or none, or comments in its place."""
    space = rng.choice((" ", "\n", "\r\n", "\t", " # {'\n", "\n#\n", "\v", ""))
    made = [space if token.isspace() else token for token in tokens]
    return [token for token in made if token]


def _quotes(tokens: list[str], rng: Random, _: Sequence[bytes]) -> list[str]:
    """All strings in the other quotes, or split in two."""
    if rng.random() < 0.5:
        return [f"'{t[1:-1]}'" if t[0] == '"' and "'" not in t else t for t in tokens]
    return [f'{t[:2]}" "{t[2:]}' if t[0] == '"' and "\\" not in t and len(t) > 3 else t
            for t in tokens]  # fmt: skip


# ---- Fields: a word, perhaps a colon, and a value ----


def _spans(tokens: list[str]) -> list[tuple[int, int]]:
    """Where the fields of a text lie, in tokens; of a broken text those that are whole."""
    found, stack = [], []
    name = -1
    for at, token in enumerate(tokens):
        if token in _CLOSERS:
            stack.append((token, name))
            name = -1
        elif token in ("}", ">", "]"):
            if stack and _CLOSERS[stack[-1][0]] == token:
                start = stack.pop()[1]
                if start >= 0:
                    found.append((start, at + 1))
            name = -1
        elif _is_word(token) and name < 0:
            name = at
        elif name >= 0 and (_is_string(token) or _is_number(token) or _is_word(token)):
            found.append((name, at + 1))
            name = -1
    return found


def _fields(tokens: list[str], rng: Random, others: Sequence[bytes]) -> list[str]:
    """Drop, double, move, wrap or replace a field, or take one from another text."""
    spans = _spans(tokens)
    if not spans:
        return tokens
    start, end = rng.choice(spans)
    field, at = tokens[start:end], rng.choice(spans)[0]
    what = rng.randrange(8)
    if what == 0:
        return tokens[:start] + tokens[end:]
    if what == 1:
        return [*tokens[:end], "\n", *field, *tokens[end:]]
    if what == 2:
        return [*tokens[:at], *field, "\n", *tokens[at:]]
    if what == 3 and others:
        other = _TOKEN.findall(rng.choice(others).decode("latin-1"))
        a, b = rng.choice(_spans(other) or [(0, len(other))])
        return [*tokens[:at], *other[a:b], " ", *tokens[at:]]
    if what == 4:
        return [*tokens[:start], rng.choice(WORDS), " {", *field, "}", *tokens[end:]]
    if what == 5:
        return _list(tokens, start, end)
    return [*tokens[:at], rng.choice(FIELDS), rng.choice((" ", "\n", ", ", ";")), *tokens[at:]]


def _list(tokens: list[str], start: int, end: int) -> list[str]:
    """A field ``name: value`` or ``name { }`` as a list of two."""
    field = tokens[start:end]
    value = field[1:] if field[1:2] != [":"] else field[2:]
    return [*tokens[:start], field[0], ": [", *value, ",", *value, "]", *tokens[end:]]


def _place(tokens: list[str], rng: Random) -> int:
    return rng.randrange(len(tokens)) if tokens else 0


_Step = Callable[["list[str]", Random, "Sequence[bytes]"], "list[str]"]
_STEPS: tuple[_Step, ...] = (
    _delete, _double, _swap, _insert, _change, _change, _change, _rename, _fields, _fields,
    _fields, _fields, _truncate, _spaces, _quotes,
)  # fmt: skip


# ---- Bytes ----


def _flip(data: bytes, rng: Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        if made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _encoded(data: bytes, rng: Random) -> bytes:
    text = data.decode("latin-1")
    if rng.random() < 0.5:
        return b"\xef\xbb\xbf" + data
    return text.encode(rng.choice(("utf-8", "utf-16", "utf-16-le", "utf-32", "utf-7")))


def _any(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(8))) + data[at:]


_BYTES = (_flip, _flip, _cut, _encoded, _any)


def _huge(text: str, rng: Random) -> str:
    """What is far too long or too deep; these cost time and are few."""
    count = rng.choice((1_000, 100_000))
    word = "x" * (10 * count)
    return rng.choice(
        (
            "a {" * count + "}" * count + text,
            "layer {" * count + "}" * count,
            "layer { name: 'x' " + "a {" * count + "}" * count + "}" + text,
            "layer { convolution_param {" + "a <" * count + ">" * count + "} }" + text,
            "a {" * count,
            "a: [" * count,
            f'{text} layer {{ name: "{word}" type: "{word}" top: "{word}" }}',
            f"{text} layer {{ {word}: 1 }}",
            f"{text} [{word}]: $",
            f"{word}: 1",
            f"{word} $",
            f"layer {{ name: {word} }}",
            f"layer {{ phase: {word} }}",
            f"layer {{ name: 'x' type: 'Power' power_param {{ power: {word} }} }}",
            text + "#" * (10 * count),
            text.replace("1", "9" * count, 1),
            text + " layer { top: [" + "'a'," * count + "'b'] }",
            text.replace("dim: ", "dim: 1 dim: 1 " * (count // 10) + "dim: ", 1),
        )
    )
