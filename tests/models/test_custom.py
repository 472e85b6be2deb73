"""A user's own network: each way that naming it can fail is one sentence, and ours wins over a folder of theirs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.models import build_model, check_model
from bench.models.custom import check_answer, import_factory

NUMBERS = itertools.count()


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module into a working folder of its own; its name, new each time, is the answer."""
    monkeypatch.chdir(tmp_path)
    finders_before = list(sys.meta_path)
    modules_before = set(sys.modules)

    def write(text: str) -> str:
        name = f"users_network_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    sys.meta_path[:] = finders_before
    for name in set(sys.modules) - modules_before:
        if name.startswith("users_"):
            del sys.modules[name]


def build(factory: str | None) -> nn.Module:
    return build_model("custom", num_classes=4, in_channels=2, image_size=8, factory=factory)


def refusal(factory: str | None) -> str:
    with pytest.raises(ConfigError) as caught:
        build(factory)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_a_factory_gets_the_arguments_that_it_takes(write_module: Callable[[str], str]) -> None:
    name = write_module(
        "from torch import nn\n"
        "def some(num_classes, *, in_channels=1, width=3): return nn.Linear(in_channels * width, num_classes)\n"
        "def none(): return nn.Linear(5, 6)\n"
        "def every(**options): return nn.Linear(options['image_size'], options['num_classes'])\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes=9): super().__init__(1, num_classes)\n"
    )
    shapes = {key: tuple(build(f"{name}:{key}").weight.shape) for key in ("some", "none", "every", "Net")}
    assert shapes == {"some": (4, 6), "none": (6, 5), "every": (4, 8), "Net": (4, 1)}


def test_a_factory_inside_a_package_is_found(write_module: Callable[[str], str], tmp_path: Path) -> None:
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from torch import nn\ndef make(): return nn.Identity()\n")
    assert isinstance(build("users_package.nets:make"), nn.Identity)


@pytest.mark.parametrize("factory", ["users_network", "users_network:", ":make", "a b:make", "net:make:x", "a/b:make"])
def test_a_name_without_the_right_form_is_refused(factory: str) -> None:
    assert "package.module:function" in refusal(factory)


def test_a_missing_factory_is_refused() -> None:
    assert "model.factory=package.module:function" in refusal(None)


def test_a_missing_module_is_named_with_the_folder_looked_in(
    write_module: Callable[[str], str], tmp_path: Path
) -> None:
    message = refusal("users_absent.net:make")
    assert "users_absent" in message
    assert str(tmp_path) in message


def test_a_module_that_fails_to_import_says_why(write_module: Callable[[str], str]) -> None:
    assert "users_other_absent" in refusal(f"{write_module('import users_other_absent')}:make")
    assert "SyntaxError" in refusal(f"{write_module('def make(:')}:make")
    assert "SystemExit: 3" in refusal(f"{write_module('raise SystemExit(3)')}:make")
    assert "ZeroDivisionError" in refusal(f"{write_module('1 / 0')}:make")


def test_a_missing_attribute_names_the_file_that_was_found(write_module: Callable[[str], str]) -> None:
    name = write_module("")
    message = refusal(f"{name}:make")
    assert "has no make" in message
    assert f"{name}.py" in message


def test_an_attribute_that_cannot_be_called_is_refused(write_module: Callable[[str], str]) -> None:
    assert "is a int" in refusal(f"{write_module('make = 3')}:make")


def test_a_factory_that_demands_more_than_is_offered_is_refused(write_module: Callable[[str], str]) -> None:
    name = write_module("def make(num_classes, depth, /): pass\ndef other(width, num_classes): pass")
    assert "demands num_classes, depth" in refusal(f"{name}:make")
    assert "demands width," in refusal(f"{name}:other")


def test_a_factory_that_raises_is_refused_on_one_line(write_module: Callable[[str], str]) -> None:
    assert "ValueError: two lines" in refusal(
        f"{write_module('def make(): raise ValueError(chr(10).join([`two`, `lines`]))'.replace('`', chr(39)))}:make"
    )


def test_a_factory_that_ends_the_process_is_refused(write_module: Callable[[str], str]) -> None:
    assert "the call failed with SystemExit: 3" in refusal(f"{write_module('def make(): raise SystemExit(3)')}:make")


def test_what_is_not_a_module_is_refused(write_module: Callable[[str], str]) -> None:
    assert "returned a dict" in refusal(f"{write_module('def make(): return {}')}:make")


def test_check_model_imports_the_factory_but_does_not_call_it(write_module: Callable[[str], str]) -> None:
    name = write_module("def make(): raise RuntimeError('called')")
    check_model("custom", factory=f"{name}:make")
    with pytest.raises(ConfigError, match="has no other"):
        check_model("custom", factory=f"{name}:other")


def test_the_working_folder_goes_last_so_that_our_rooms_win(write_module: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise RuntimeError('the wrong bench')")
    (tmp_path / "statistics.py").write_text("raise RuntimeError('the wrong statistics')")
    name = write_module("import statistics\nimport bench.errors\nfrom torch import nn\nmake = nn.Identity")
    assert isinstance(build(f"{name}:make"), nn.Identity)


def test_an_editable_install_wins_over_the_working_folder_and_new_processes_are_not_shown_it(
    write_module: Callable[[str], str], tmp_path: Path
) -> None:
    class Editable:
        """As setuptools' own finder: it stands behind the one for ``sys.path``."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            return PathFinder.find_spec(name, [str(tmp_path / "installed")]) if name == "users_tools" else None

    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "users_tools.py").write_text("ours = True")
    (tmp_path / "users_tools.py").write_text("ours = False")
    sys.meta_path.append(Editable())  # type: ignore[arg-type]
    path = list(sys.path)
    name = write_module("import users_tools\nassert users_tools.ours\nfrom torch import nn\nmake = nn.Identity")
    for _ in range(2):
        assert import_factory(f"{name}:make") is nn.Identity
    assert sys.path == path


class Answers(nn.Module):
    """A network whose forward is the given function."""

    def __init__(self, forward: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.answer = forward

    def forward(self, x: Tensor) -> object:
        return self.answer(self.norm(x))


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (
            lambda x: (x, x),
            "returns a tuple and not a tensor; it must return one floating-point tensor of logits, (4, 10)",
        ),
        (lambda x: x, r"returns torch.float32 of shape (4, 3, 8, 8)"),
        (lambda x: x.mean((2, 3)), "of shape (4, 3)"),
        (lambda x: x.flatten(1).argsort(1), "returns torch.int64"),
    ],
)
def test_a_network_that_does_not_answer_with_logits_is_refused_in_a_sentence(
    forward: Callable[[Tensor], object], words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_answer("nets:make", Answers(forward), torch.randn(4, 3, 8, 8), 10)
    assert words in str(refused.value)
    assert str(refused.value).startswith("model.factory=nets:make: ")


def test_what_a_network_raises_itself_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError):
        check_answer("nets:make", Answers(lambda x: x @ x.new_zeros(3, 3)), torch.randn(4, 3, 8, 8), 10)


def test_looking_at_the_answer_leaves_modes_and_statistics_as_they_were() -> None:
    model = Answers(lambda x: x.flatten(1))
    model.norm.eval()
    check_answer("nets:make", model, torch.randn(4, 3, 8, 8), 10)
    assert model.training
    assert not model.norm.training
    assert model.norm.running_mean is not None
    assert torch.equal(model.norm.running_mean, torch.zeros(3))
