"""Config dataclasses from YAML and options: types, precedence, help texts and error messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from autodrag.config_files import read_config
from autodrag.errors import AutodragError


@dataclass(frozen=True)
class Net:
    """A group."""

    width: int = 8
    """Channels, 100 % of them."""
    names: tuple[str, ...] = ("nose",)
    """Names of the points."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width {self.width}: expected at least 1")


@dataclass(frozen=True)
class Training:
    """A training.

    More text.
    """

    folder: Path
    """Output folder."""
    lr: float = 1e-3
    """Learning rate."""
    seed: int | None = None
    """Seed."""
    keep_all: bool = False
    """Whether all are kept."""
    colour: str = "white"
    """Colour."""
    net: Net = field(default_factory=lambda: Net(width=16))
    """The network."""
    kind: Literal["a", "b"] = "a"
    """Kind."""


def read(*words: str) -> Training:
    """Read the config of `autodrag train net`."""
    return read_config(Training, "autodrag train net", words)


def test_precedence_of_options_file_and_defaults(tmp_path: Path) -> None:
    assert read("--folder", "runs/x") == Training(Path("runs/x"))
    file = tmp_path / "c.yaml"
    file.write_text("folder: a\nlr: 2e-4\nnet: {names: [eye, ear]}\n")  # YAML 1.1 reads 2e-4 as a string
    assert read("--config", str(file)) == Training(Path("a"), 2e-4, None, net=Net(16, ("eye", "ear")))
    words = ["--config", str(file), "--net.width", "4", "--lr=-0", "--seed", "3"]
    assert read(*words) == Training(Path("a"), 0.0, 3, net=Net(4, ("eye", "ear")))


def test_flags_need_no_value_and_names_may_have_hyphens() -> None:
    for words in (["--keep_all"], ["--keep-all"], ["--keep-all=true"], ["--keep_all", "true"]):
        assert read(*words, "--folder", "some-folder") == Training(Path("some-folder"), keep_all=True)
    assert not read("--folder", "a", "--keep-all", "false").keep_all
    with pytest.raises(AutodragError, match="keep_all is 'perhaps'; expected true or false"):
        read("--folder", "a", "--keep-all", "perhaps")


def test_hexadecimal_colours_are_no_comments() -> None:
    assert read("--folder", "a", "--colour", "#808080").colour == "#808080"


@pytest.mark.parametrize(
    ("document", "words", "sentence"),
    [
        ("", [], "folder is missing; add it"),
        ("folder: a\nlrr: 1", [], "lrr is not a known field; did you mean lr?"),
        ("folder: a\nnet: {xyz: 1}", [], "net.xyz is not a known field; expected one of width, names"),
        ("folder: a\nnet: 3", [], "net is not a mapping of fields"),
        ("- 1", [], "the document is not a mapping of fields"),
        ("a: b: c", [], "is not YAML"),
        ("folder: a", ["--net.witdh", "1"], "--net.witdh is not an option of autodrag train net; did you mean"),
        ("folder: a", ["--net.width", "2.5"], "net.width is 2.5; expected a whole number"),
        ("folder: a", ["--lr", "fast"], "lr is 'fast'; expected a number"),
        ("folder: a", ["--lr", "{"], "--lr '{' is not a YAML value"),
        ("folder: a", ["--net.width", "0"], "width 0: expected at least 1"),
    ],
)
def test_invalid_values(tmp_path: Path, document: str, words: list[str], sentence: str) -> None:
    (tmp_path / "c.yaml").write_text(document)
    with pytest.raises(AutodragError) as caught:
        read("--config", str(tmp_path / "c.yaml"), *words)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_help_is_generated_from_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    output = " ".join(capsys.readouterr().out.split())
    assert "A training. " in output and "More text" not in output
    assert "--net.width INT Channels, 100 % of them. (default: 16)" in output
    assert "--folder PATH Output folder." in output
    assert "--seed INT Seed. (default: None)" in output and "--kind a|b Kind. (default: a)" in output
