"""Names of files: what people give is kept, what no file system takes is replaced."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luma_poll import ConfigurationError
from luma_poll._downloads.names import clean, naming_of


@pytest.mark.parametrize(
    "name",
    ["Füchse", "狐狸", "Red mug", "v1.2_final", "fox (1)", "a{b}", "it's #1 & more"],
)
def test_a_name_is_kept(name: str) -> None:
    """Letters, digits, blanks, dots and brackets of any language."""
    assert clean(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "..",
        ".hidden",
        "fox.",
        "fox ",
        "con",
        "NUL.txt",
        "com1",
        "a\nb",
        "a\u202eb",
        "x" * 300,
    ],
)
def test_what_no_file_system_takes_is_replaced(name: str) -> None:
    """With a hash that tells such names apart."""
    cleaned = clean(name)
    assert cleaned != name
    assert cleaned != clean(name + "\n")
    assert clean(cleaned) == cleaned


@given(st.text(min_size=1))
def test_no_name_leads_out_of_the_directory(name: str) -> None:
    """Nor is it too long with its extension and a number."""
    cleaned = clean(name)
    assert Path("out", cleaned).parent == Path("out")
    assert len(cleaned.encode()) <= 220


@pytest.mark.parametrize(
    ("target", "name", "key", "number", "path"),
    [
        ("out", None, None, 1, "out/ID"),
        ("out", None, None, 2, "out/ID-2"),
        ("out", "fox", None, 2, "out/fox~2"),
        ("out", "fox.png", None, 1, "out/fox.png"),
        ("out", "v1.2_final", None, 1, "out/v1.2_final"),
        ("out/fox.PNG", None, None, 1, "out/fox.PNG"),
        ("out.v2", None, None, 1, "out.v2/ID"),
        ("out.png/", None, None, 1, "out.png/ID"),
        ("out", "{key}-{n}", "hero", 3, "out/hero-3"),
        ("out", None, "{n}", 1, "out/{n}"),
        ("out/{id}.png", None, None, 1, "out/ID.png"),
    ],
)
def test_where_a_file_goes(
    target: str, name: str | None, key: str | None, number: int, path: str
) -> None:
    """A path with a known extension is a file, and an extension is not doubled."""
    naming = naming_of(target, name, key)
    stem, extension = naming.stem("ID", number)
    assert naming.folder / (f"{stem}.{extension}" if extension else stem) == Path(path)


@pytest.mark.parametrize(
    ("target", "name"),
    [("out", " "), ("out", "{kee}"), ("out", "{key}"), ("out.png", "fox"), (17, None), ("out", 1)],
)
def test_an_unusable_name_is_refused(target: object, name: object) -> None:
    """With a clear error."""
    with pytest.raises(ConfigurationError):
        naming_of(target, name)
