"""Fields and layers taken out of the text: what goes with them, and what stays."""

from __future__ import annotations

import pytest

from caffe_fold.nets.edits import Edit, apply_edits, removals
from caffe_fold.nets.prototxt import parse, string_value

LAYERS = """\
name: "net"

# the first
layer {
  name: "a" # trailing
}

# stays: a blank line is below it

# above b
  # and this
layer {
  name: "b"
} # behind b
# above c
layer { name: "c" };
layer { name: "d" } layer { name: "e" }
"""


def without(text: str, *names: str) -> str:
    document = parse(text.encode())
    gone = [
        field
        for field in document.fields
        if field.fields and string_value(document, field.fields[0]) in names
    ]
    return apply_edits(document, removals(document, gone)).decode()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_removed_layer_takes_its_comment_lines_along(newline: str) -> None:
    text = LAYERS.replace("\n", newline)
    wanted = """\
name: "net"

# the first
layer {
  name: "a" # trailing
}

# stays: a blank line is below it

# above c
layer { name: "c" };
layer { name: "d" } layer { name: "e" }
""".replace("\n", newline)
    assert without(text, "b") == wanted


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("a", '# the first\nlayer {\n  name: "a" # trailing\n}\n'),
        ("c", '# above c\nlayer { name: "c" };\n'),
        ("d", 'layer { name: "d" }'),
        ("e", 'layer { name: "e" }'),
    ],
)
def test_what_goes_with_a_layer(name: str, gone: str) -> None:
    assert LAYERS.count(gone) == 1
    assert without(LAYERS, name) == LAYERS.replace(gone, "")


def test_a_comment_in_the_first_line_behind_a_byte_order_mark_stays() -> None:
    assert without('\ufeff# x\nlayer { name: "a" }\n', "a") == "\ufeff# x\n"


def test_a_removed_layer_at_the_end_needs_no_line_feed() -> None:
    assert without('layer { name: "a" }\nlayer { name: "b" } # b', "b") == 'layer { name: "a" }\n'


@pytest.mark.parametrize(
    ("text", "names", "wanted"),
    [
        ("[{n:'a'}, {n:'b'}, {n:'c'}]", "a", "[ {n:'b'}, {n:'c'}]"),
        ("[{n:'a'}, {n:'b'}, {n:'c'}]", "b", "[{n:'a'},  {n:'c'}]"),
        ("[{n:'a'}, {n:'b'}, {n:'c'}]", "c", "[{n:'a'}, {n:'b'}]"),
        ("[{n:'a'}, {n:'b'}, {n:'c'}]", "bc", "[{n:'a'}]"),
        ("[{n:'a'}, {n:'b'}, {n:'c'}]", "ab", "[ {n:'c'}]"),
        ("[{n:'a'}, {n:'b'}, {n:'c'}]", "ac", "[ {n:'b'}]"),
        ("[{n:'a'}, {n:'b'}, {n:'c'}]", "abc", "[]"),
        ("[{n:'a'}, # x,\n {n:'b'}]", "b", "[{n:'a'}]"),
    ],
)
def test_a_value_of_a_list_goes_with_one_comma(text: str, names: str, wanted: str) -> None:
    assert without(f"layer: {text}", *names) == f"layer: {wanted}"


def test_a_separator_on_another_line_goes_along() -> None:
    assert without('layer { name: "a" }\n;\nb: 1', "a") == "\nb: 1"


def test_edits_that_overlap_are_a_mistake_of_the_caller() -> None:
    document = parse(b"a: 12345")
    with pytest.raises(AssertionError, match="overlap at byte 4"):
        apply_edits(document, [Edit(3, 5), Edit(4, 6)])
