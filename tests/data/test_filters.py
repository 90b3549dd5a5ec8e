"""Documents are dropped for what they are, and the reason is told."""

import sys

import pytest

from trainer.data import filters
from trainer.data.filters import REASONS, DocumentFilters
from trainer.errors import InputError

GERMAN = ["Der Hund liegt vor dem Haus und schläft, während die Kinder im Garten mit dem Ball spielen."]
ENGLISH = ["The dog lies in front of the house and sleeps, while the children play with the ball in the garden."]


@pytest.mark.parametrize(
    ("asked", "lines", "reason"),
    [
        ({"min_words": 3}, ["one two", "three"], None),
        ({"min_words": 4}, ["one two", "three"], "too_few_words"),
        ({"max_words": 2}, ["one two", "three"], "too_many_words"),
        ({"min_characters": 12}, ["one two", "three"], None),  # line ends do not count
        ({"min_characters": 13}, ["one two", "three"], "too_few_characters"),
        ({"max_characters": 11}, ["one two", "three"], "too_many_characters"),
        ({"max_symbol_share": 0.5}, ["ab !?"], None),  # white space does not count
        ({"max_symbol_share": 0.49}, ["ab !?"], "too_many_symbols"),
        ({"max_symbol_share": 0.0}, ["日本語。"], "too_many_symbols"),
        (
            {"max_symbol_share": 0.0},
            ["नमस्ते தமிழ் שָׁלוֹם naïve e\u0301 x_y".replace("_", "")],
            None,
        ),  # marks are no symbols
        ({"max_symbol_share": 0.3}, ["<div> => {}"], "too_many_symbols"),
        ({"max_digit_share": 0.5}, ["ab 12", "c٣"], None),  # Arabic digits are digits
        ({"max_digit_share": 0.4}, ["ab 12", "c٣"], "too_many_digits"),
        ({"min_words": 2, "max_digit_share": 0.4}, ["123"], "too_few_words"),  # the first reason
    ],
)
def test_documents_are_dropped_for_the_first_reason_that_applies(asked, lines, reason):
    asked = DocumentFilters(**asked)
    assert asked.active and asked.reason_to_drop(lines) == reason
    assert reason is None or reason in REASONS


def test_without_filters_nothing_is_dropped():
    assert not DocumentFilters().active and DocumentFilters().reason_to_drop([]) is None


def test_documents_in_other_languages_are_dropped():
    pytest.importorskip("py3langid", reason="it tells languages apart")
    asked = DocumentFilters(languages=["en", "fr"])
    assert asked.reason_to_drop(ENGLISH) is None
    assert asked.reason_to_drop(GERMAN) == "other_language"
    assert asked.reason_to_drop(ENGLISH * 20 + GERMAN) is None  # the beginning decides
    with pytest.raises(InputError, match=r"'eng' is not known.*did you mean 'en'"):
        DocumentFilters(languages=("eng",))


def test_languages_without_their_package_are_refused_with_what_to_install(monkeypatch):
    filters._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(InputError, match="pip install py3langid"):
        DocumentFilters(languages=("en",))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"min_words": 0}, "min_words must be at least 1"),
        ({"min_characters": 10, "max_characters": 9}, r"min_characters \(10\) is more than max_characters \(9\)"),
        ({"max_symbol_share": 30}, "max_symbol_share is a share from 0 to 1, got 30"),
    ],
)
def test_filters_that_cannot_work_are_refused_by_name(asked, message):
    with pytest.raises(InputError, match=message):
        DocumentFilters(**asked)
