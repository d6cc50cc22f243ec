"""Display names of classes: which fit, which do not, and what is said of them."""

import json
import unicodedata
from pathlib import Path

import pytest
from conftest import logged

from pipeline.errors import PipelineError
from pipeline.inputs.display_names import read_names
from pipeline.inputs.names import resembling

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def named(tmp_path: Path, names: dict[str, str], labels: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """The names that `labels` get, and what is said of them."""
    said: list[str] = []
    (tmp_path / "names.json").write_text(json.dumps(names))
    return logged(said, read_names, tmp_path / "names.json", labels), "\n".join(said)


def test_names_and_classes_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    """All fit: nothing is said; one is of another Unicode form: it is taken, and said."""
    assert named(tmp_path, {"1": "rose", "2": "lily"}, ("1", "2")) == ({"1": "rose", "2": "lily"}, "")
    found, said = named(tmp_path, {"1": "rose", "8": "x", "9": "y"}, ("1", "2", "3", "4"))
    assert found == {"1": "rose"}
    assert "3 of 4 classes" in said
    assert "'2'" in said
    assert "2 of 3 names" in said
    assert "shifted" not in said
    found, said = named(tmp_path, {NFD: "coffee", "2": "lily"}, (NFC, "2"))
    assert found == {NFC: "coffee", "2": "lily"}
    assert "NFC against NFD" in said


def test_names_that_fit_no_class_are_refused(tmp_path: Path) -> None:
    """With a key and a class, so that the difference shows."""
    for names, fact in (({"001": "rose"}, "'001'"), ({}, "none")):
        with pytest.raises(PipelineError, match=r"\b2\b") as error:
            named(tmp_path, names, ("1", "2"))
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("first", "classes_from", "shifted"), [(0, 1, True), (1, 0, True), (1, 1, False), (0, 2, False)]
)
def test_names_that_count_from_another_number_are_said(
    tmp_path: Path, first: int, classes_from: int, shifted: bool
) -> None:
    """Keys 0 to 9 for classes 1 to 10: nine of them fit, and all are wrong."""
    names = {str(number): f"name {number}" for number in range(first, first + 10)}
    labels = tuple(sorted(str(number) for number in range(classes_from, classes_from + 10)))
    assert ("shifted by one" in named(tmp_path, names, labels)[1]) is shifted


def test_a_misspelt_name_has_a_suggestion() -> None:
    """To follow the name in a sentence; nothing where no other is near."""
    assert resembling("cyclamin", ["rose", "cyclamen"]) == " (did you mean 'cyclamen'?)"
    assert resembling("tulip", ["rose", "cyclamen"]) == ""
