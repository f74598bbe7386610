"""Values of keys named like a secret are in no message."""

from __future__ import annotations

import pytest

from toolchain.build.caret import Problem, render
from toolchain.build.secrets import shown


@pytest.mark.parametrize(("line", "text"), [
    ("  pi: {user: pi, password: hunter2, port: x}", "  pi: {user: pi, password: ***, port: x}"),
    ("password: a, b } c", "password: ***"),
    ('{"passphrase": "a, \\"}b", port: 1}', '{"passphrase": ***, port: 1}'),
    ("{api_key: 'it''s', my-token: x}", "{api_key: ***, my-token: ***}"),
    ("{passwd: , ssh_password: unclosed", "{passwd: , ssh_password: ***"),
    ("PASSWORD:   ä ü", "PASSWORD:   ***"),
    ("key_file: ~/.ssh/id_ed25519", "key_file: ~/.ssh/id_ed25519"),
    ("password:", "password:"),
    ('{"password":"x"}', '{"password":***}'),
    ("token_type_ids: {range: [0, 2]}", "token_type_ids: {range: [0, 2]}"),
])
def test_values_are_hidden(line, text):
    assert shown([line], 0).text == text


def test_values_of_several_lines_are_hidden():
    lines = ["pi:", "  password: >", "    hunter2", "      three", "", "  port: 22"]
    hidden = [shown(lines, n).text.strip() for n in range(len(lines))]
    assert hidden == ["pi:", "password: ***", "***", "***", "", "port: 22"]


def test_the_caret_stands_where_it_stood():
    line = "  pi: {user: pi, password: a very long one, port: x}"
    def screen(column: int, length: int) -> list[str]:
        return render([Problem(0, column, "bad", length)], line, "f").splitlines()[1:]
    assert screen(line.index("port"), 4) == ["1 |   pi: {user: pi, password: ***, port: x}",
                                             "  |                                 ^^^^"]
    assert screen(line.index("very"), 4)[1].index("^") == screen(0, 1)[0].index("***")
    assert screen(line.index("very"), 4)[1].count("^") == 3
