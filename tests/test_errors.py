from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from bench import errors
from bench.errors import ConfigError, RecordError, is_ours, system_reason
from bench.printable import show_path, show_text
from bench.records.read import read_record
from bench.training.shapes import _CopyShapes


def test_a_system_error_speaks_in_the_systems_words_and_any_other_in_its_own() -> None:
    assert system_reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/path")) == "No space left on device"
    assert system_reason(OSError("the share is gone")) == "the share is gone"
    assert system_reason(ValueError("embedded null byte")) == "embedded null byte"


def raised_at(line: str, file: Path) -> BaseException:
    """What a line of a file raises."""
    with pytest.raises((AttributeError, KeyError, RuntimeError)) as caught:
        exec(compile(line, str(file), "exec"), {"torch": torch})
    return caught.value


def test_a_mistake_in_our_lines_is_ours_and_what_a_users_line_or_torch_raises_is_not() -> None:
    ours, users = Path(errors.__file__).parent / "layers" / "new.py", Path("users/net.py")
    assert is_ours(raised_at("None.shape", ours))
    assert is_ours(raised_at("{}['key']", ours))
    assert not is_ours(raised_at("None.shape", users))
    assert not is_ours(raised_at("torch.ones(2).reshape(3)", ours)), "a user's network may have handed it that tensor"
    with pytest.raises(RecordError) as sentence:
        read_record(Path("nowhere/record.json"))
    assert is_ours(sentence.value)
    assert not is_ours(ConfigError("raised by nobody"))


def test_an_error_of_a_call_that_a_torch_mode_of_ours_hands_on_is_not_ours() -> None:
    with pytest.raises(RuntimeError, match="shape") as caught, _CopyShapes(torch.device("cpu")):
        torch.ones(2).reshape(3)
    assert not is_ours(caught.value)


def test_a_text_is_shown_without_what_a_terminal_would_obey() -> None:
    assert show_text("\x1b[31mred\nünïcode") == r"\x1b[31mred\nünïcode"
    assert show_path(Path("caf\udce9")) == r"caf\udce9"
