"""Requests from files: what each format is read as, and what is refused before anything is sent."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luma_poll import ConfigurationError, requests_from
from luma_poll._running.request_files import overview
from tests.api.test_media_reference import PNG, WEBP

FOX, OWL = {"prompt": "a fox"}, {"prompt": "an owl"}


def write(directory: Path, name: str, content: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a fox\n\n# a comment\n  an owl\r\n"),
        ("a.TXT", b"\xef\xbb\xbfa fox\nan owl"),
        ("a.txt", "a fox\nan owl\n".encode("utf-16")),
        ("a.jsonl", '{"prompt": "a fox"}\n\n"an owl"\n'),
        ("a.ndjson", '"a fox"\r\n{"prompt": "an owl"}'),
        ("a.json", '[\n  {"prompt": "a fox"},\n  "an owl"\n]\n'),
        ("a.csv", "prompt\na fox\n\nan owl\n"),
        ("a.csv", b'\xef\xbb\xbfprompt,style\r\n"a fox",\r\nan owl,\r\n'),
        ("a.csv", "prompt;style\na fox;\nan owl;\n"),
        ("a.tsv", "prompt\tstyle\na fox\t\nan owl\t\n"),
    ],
)
def test_every_format_is_read(tmp_path: Path, name: str, content: str | bytes) -> None:
    """As the programs write it that people have."""
    requests = requests_from(write(tmp_path, name, content))
    assert (list(requests), len(requests)) == ([FOX, OWL], 2)
    assert list(requests) == [FOX, OWL]  # and once more


def test_the_columns_of_a_table_are_parameters(tmp_path: Path) -> None:
    """Dots nest, numbers are places in a list, and a cell is what its column is."""
    write(tmp_path, "in.webp", WEBP)
    write(tmp_path, "b.png", PNG)
    table = (
        "key,prompt,model,type,web_search,video.duration,video.loop,video.keyframe_indexes,"
        "source,image_ref.1,image_ref.0.url,user_id\n"
        '17,"a fox,\nand snow",ray-3.2,video,TRUE,5s,false,"[0, 24]",'
        "in.webp,b.png,https://a.example/c.png,0042\n"
    )
    (request,) = requests_from(write(tmp_path, "a.csv", table))
    assert request == {
        "key": "17",
        "prompt": "a fox,\nand snow",
        "model": "ray-3.2",
        "type": "video",
        "web_search": True,
        "video": {"duration": "5s", "loop": False, "keyframe_indexes": [0, 24]},
        "source": tmp_path / "in.webp",
        "image_ref": [{"url": "https://a.example/c.png"}, tmp_path / "b.png"],
        "user_id": "0042",
    }


def test_one_reference_may_stand_in_one_cell(tmp_path: Path) -> None:
    """An address or a path, relative to the table."""
    write(tmp_path, "in.webp", WEBP)
    table = "prompt,image_ref\na fox,in.webp\nan owl,https://a.example/b.png\n"
    one, two = requests_from(write(tmp_path, "a.csv", table))
    assert one["image_ref"] == [tmp_path / "in.webp"]
    assert two["image_ref"] == [{"url": "https://a.example/b.png"}]


def test_defaults_hold_where_a_row_says_nothing(tmp_path: Path) -> None:
    """What a command line's options are for."""
    path = write(tmp_path, "a.jsonl", '{"prompt": "a fox", "model": "uni-1"}\n"an owl"\n')
    requests = list(requests_from(path, defaults={"model": "uni-1-max", "style": None}))
    assert [request["model"] for request in requests] == ["uni-1", "uni-1-max"]
    assert "style" not in requests[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '"a"\n{"prompt": "b", "aspect_ratio": NaN}', "line 2: aspect_ratio is nan"),
        ("a.jsonl", '"a"\n{"prompt": NaN}', "line 2: prompt is nan"),
        ("a.jsonl", '"a"\n{"prompt": "a", "prompt": "b"}', "line 2: 'prompt' is given 2 times"),
        ("a.jsonl", '"a"\n{"prompt": "\\ud83d fox"}', "line 2: prompt is not text"),
        ("a.jsonl", '"a"\n{"prompt": "b"', "line 2: not JSON: "),
        ("a.jsonl", '"a"\n[1]', "line 2: a request is a prompt or an object"),
        ("a.jsonl", '"a"\n{"prompt": 7}', "line 2: prompt must be a string"),
        ("a.jsonl", '{"promt": "a"}', "line 1: there is no parameter 'promt': do you mean prompt?"),
        (
            "a.jsonl",
            '{"prompt": "a", "video": {"lenght": 5}}',
            "line 1: there is no parameter 'video.lenght'",
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "image_ref": [{"urll": "x"}]}',
            r"line 1: there is no parameter 'image_ref\[0\].urll': do you mean image_ref\[0\].url?",
        ),
        ("a.jsonl", '{"prompt": "a", "key": "k"}\n{"prompt": "b", "key": "k"}', "line 2: the key"),
        ("a.jsonl", '{"prompt": "a", "source": "gone.png"}', r"line 1: source: .*gone\.png cannot"),
        ("a.json", '{"prompt": "a"}', "line 1: it is not a JSON array"),
        ("a.json", '[\n"a",\n"b"', "line 3: not JSON"),
        ("a.json", '[\n\n"a", {"prompt":\n"b"},\n{"modle": "x"}]', "line 5: there is no parameter"),
        ("a.csv", '"a fox"\n"an owl"\n', "line 1: no column is called 'prompt'"),
        ("a.csv", "prompt,prompt\na,b\n", "line 1: two columns are called 'prompt'"),
        ("a.csv", "prompt,promp\na,b\n", "line 2: there is no parameter 'promp'"),
        ("a.csv", 'prompt\n"a\nb"\nc,d\n', "line 4: it has 2 cells, the header has 1"),
        ("a.csv", 'prompt\n"a fox\n', "line 2: it is not a row of a table"),
        ("a.csv", "prompt,\na,b\n", "line 2: the column with 'b' has no name"),
        ("a.csv", "prompt\na\nnan\n", "line 3: prompt is nan"),
        ("a.csv", "prompt,video.seed\na,NaN\n", "line 2: "),
        ("a.csv", "prompt,source,source.url\na,b,c\n", "line 2: the columns for 'source.url'"),
        ("a.csv", "prompt,style\n,manga\n", "line 2: prompt must be a string"),
        ("a.txt", "prompt\na fox\n", "line 1: it looks like the header"),
        ("a.txt", "key,prompt\n1,a fox\n", "line 1: it looks like the header"),
        ("a.txt", 'a fox\n{"prompt": "x"}\n', "line 2: it looks like JSON"),
        ("a.txt", "[\n", "line 1: it looks like JSON"),
        ("a.txt", "prompts:\n- a fox\n", "line 1: it looks like YAML"),
        ("a.txt", "a fox\nan owl\n".encode("utf-16")[2:], "line 1: has NUL characters"),
        ("a.txt", "a fox\n\0\n", "line 2: has NUL characters"),
        ("a.txt", b"a fox\n\xff\n", "line 2: it is not UTF-8"),
        ("a.txt", b"\xff\xfea\0 \0f", "line 1: it is not UTF-16"),
        ("a.txt", "\n# nothing\n", "there is no prompt in "),
        ("a.yaml", "prompts:\n", "the name does not tell the format"),
        ("prompts", "a fox\n", "the name does not tell the format"),
    ],
)
def test_what_is_unusable_is_refused(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    """With its line, in one line."""
    with pytest.raises(ConfigurationError, match=said) as refused:
        requests_from(write(tmp_path, name, content))
    assert "\n" not in str(refused.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Nobody mends a file line by line, with a purchase in between."""
    rows = ['"a fox"', '{"prompt": "b", "seed": NaN}', "nothing", '{"modle": "x"}', '"an owl"']
    with pytest.raises(ConfigurationError) as refused:
        requests_from(write(tmp_path, "a.jsonl", "\n".join(rows)))
    assert "a.jsonl has 3 problems, and nothing was submitted: line 2: " in str(refused.value)
    places = [problem.partition(":")[0] for problem in refused.value.problems]
    assert places == ["line 2", "line 3", "line 4"]


def test_a_long_list_of_problems_is_cut(tmp_path: Path) -> None:
    """A file of the wrong kind does not fill the terminal."""
    with pytest.raises(ConfigurationError) as refused:
        requests_from(write(tmp_path, "a.jsonl", "nothing\n" * 1000))
    assert len(refused.value.problems) == 51
    assert str(refused.value).endswith("and 950 more")


def test_the_format_may_be_said(tmp_path: Path) -> None:
    """For a file with another name, and for prompts that look like something else."""
    path = write(tmp_path, "prompts", '{"a": 1}\nprompt: x\n')
    assert [each["prompt"] for each in requests_from(path, format="text")] == [
        '{"a": 1}',
        "prompt: x",
    ]
    odd: Any = "yaml"
    with pytest.raises(ConfigurationError, match="format is one of text, jsonl, json, csv, tsv"):
        requests_from(path, format=odd)


def test_a_parameter_of_tomorrow_can_be_allowed(tmp_path: Path) -> None:
    """A misspelt one is not."""
    path = write(tmp_path, "a.csv", "prompt,seed\na fox,7\n")
    with pytest.raises(ConfigurationError, match="there is no parameter 'seed'"):
        requests_from(path)
    assert list(requests_from(path, extra_parameters=["seed"])) == [{**FOX, "seed": 7}]


def test_an_open_file_is_read(tmp_path: Path) -> None:
    """Standard input is one."""
    requests = requests_from(io.BytesIO(b"a fox\nan owl\n"), format="text")
    assert list(requests) == [FOX, OWL]
    text: Any = io.StringIO("a fox")
    with pytest.raises(ConfigurationError, match="open as text"):
        requests_from(text, format="text")


@pytest.mark.parametrize("name", ["gone.txt", "a\0b.txt", ".txt", "directory.txt"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """By its path."""
    (tmp_path / "directory.txt").mkdir()
    with pytest.raises(ConfigurationError):
        requests_from(tmp_path / name)


def test_a_file_may_change_once_it_is_checked(tmp_path: Path) -> None:
    """What is submitted is what was checked."""
    path = write(tmp_path, "a.txt", "a fox\nan owl\n")
    requests = requests_from(path)
    path.write_text("prompt\n")
    assert list(requests) == list(requests[:]) == [FOX, OWL]


def test_the_lines_of_requests_are_known(tmp_path: Path) -> None:
    """A message about a request can name the line that it is from."""
    table = write(tmp_path, "a.csv", 'prompt\n\n"a\nfox"\nan owl\n')
    assert requests_from(table).lines == [3, 5]
    array = write(tmp_path, "a.json", '[ "a", {"prompt":\n"b"},\n\n "c"]')
    assert requests_from(array).lines == [1, 1, 4]


def test_what_would_be_submitted_can_be_seen(tmp_path: Path) -> None:
    """Number, models, types, keys, and the files that would be sent."""
    write(tmp_path, "in.webp", WEBP)
    rows = [
        {**FOX, "key": "k1", "model": "uni-1", "source": "in.webp", "type": "image_edit"},
        {**FOX, "source": "in.webp", "type": "image_edit"},
        OWL,
        OWL,
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    found = overview(requests_from(write(tmp_path, "a.jsonl", lines)))
    assert found.count == 4
    assert found.models == {"uni-1": 1, "": 3}
    assert found.types == {"image_edit": 2, "": 2}
    assert found.keys[0] == "k1"
    assert found.keys[3] == f"{found.keys[2]}-2"
    assert found.media == {"in.webp": (len(WEBP), 2)}


@given(st.binary(max_size=200), st.sampled_from(["text", "jsonl", "json", "csv", "tsv"]))
@example(b"\r\x01", "csv")
@example(b"\r\x01", "tsv")
def test_no_bytes_crash_it(content: bytes, form: Any) -> None:
    """They are requests, or a `ConfigurationError`."""
    try:
        requests = requests_from(io.BytesIO(content), format=form)
    except ConfigurationError:
        return
    assert len(list(requests)) == len(requests) > 0


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1).filter(
            lambda text: text.lower() != "nan" and text.strip()
        ),
        min_size=1,
    )
)
def test_json_and_tables_keep_every_prompt(prompts: list[str]) -> None:
    """What is written is read."""
    lines = "\n".join(json.dumps(prompt) for prompt in prompts).encode()
    array = json.dumps(prompts, ensure_ascii=False, indent=1).encode()
    quoted = "".join('"' + prompt.replace('"', '""') + '"\n' for prompt in prompts)
    for form, content in (
        ("jsonl", lines),
        ("json", array),
        ("csv", b"prompt\n" + quoted.encode()),
    ):
        chosen: Any = form
        read = requests_from(io.BytesIO(content), format=chosen)
        assert [each["prompt"] for each in read] == prompts
