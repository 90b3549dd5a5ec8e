"""Filters: which documents of a corpus to train on, by their length, symbols, digits and language.

A filter looks at one document alone, so what is left does not depend on the order of the documents.
"""

import collections
import dataclasses
import difflib
import functools
import unicodedata
from importlib import metadata

from trainer.errors import InputError

# The language is that of a document's beginning. py3langid takes 0.2 ms for it; lingua, which is more exact on single
# sentences, takes 10 times as long and 96 MB on the disk instead of 5.
_LANGUAGE_CHARACTERS = 500


REASONS = {
    "too_few_words": "with too few words",
    "too_many_words": "with too many words",
    "too_few_characters": "with too few characters",
    "too_many_characters": "with too many characters",
    "too_many_symbols": "with too many symbols",
    "too_many_digits": "with too many digits",
    "other_language": "in another language",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentFilters:
    """What a document must be like to be kept; None, or an empty tuple, asks nothing.

    Args:
        min_words, max_words: number of words, which white space separates.
        min_characters, max_characters: number of characters, line ends aside.
        max_symbol_share: of the characters that are not white space, how many may be punctuation or other symbols
            (Unicode categories P and S), from 0 to 1.
        max_digit_share: how many may be digits (Nd), from 0 to 1.
        languages: ISO 639 codes, e.g. `("en", "de")`: documents that begin in another language are dropped. Needs the
            package py3langid.
    """

    min_words: int | None = None
    max_words: int | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    max_symbol_share: float | None = None
    max_digit_share: float | None = None
    languages: tuple = ()

    def __post_init__(self):
        languages = (self.languages,) if isinstance(self.languages, str) else tuple(self.languages)
        object.__setattr__(self, "languages", languages)
        for of in ("words", "characters"):
            least, most = getattr(self, f"min_{of}"), getattr(self, f"max_{of}")
            for name, value in ((f"min_{of}", least), (f"max_{of}", most)):
                if value is not None and value < 1:
                    raise InputError(f"{name} must be at least 1, got {value}. Leave it out to ask nothing.")
            if least is not None and most is not None and least > most:
                raise InputError(f"min_{of} ({least:,}) is more than max_{of} ({most:,}): no document is like that.")
        for name in ("max_symbol_share", "max_digit_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is a share from 0 to 1, got {value}")
        if languages:
            _check_languages(languages)

    @property
    def active(self):
        """Whether anything is asked of documents."""
        return self != DocumentFilters()

    def reason_to_drop(self, lines):
        """Says why a document is dropped.

        Args:
            lines: list of strings, a document as `documents.read_documents` yields it.

        Returns:
            The first of `REASONS` that applies; None if the document is kept.
        """
        return (
            _out_of_range("words", self.min_words, self.max_words, lambda: sum(len(line.split()) for line in lines))
            or _out_of_range("characters", self.min_characters, self.max_characters, lambda: sum(map(len, lines)))
            or self._mostly_signs(lines)
            or self._other_language(lines)
        )

    def _mostly_signs(self, lines):
        if self.max_symbol_share is None and self.max_digit_share is None:
            return None
        kinds = collections.Counter()
        for character, count in collections.Counter("".join(lines)).items():
            kinds[_kind(character)] += count
        visible = max(1, kinds.total() - kinds["space"])
        if self.max_symbol_share is not None and kinds["symbol"] > self.max_symbol_share * visible:
            return "too_many_symbols"
        if self.max_digit_share is not None and kinds["digit"] > self.max_digit_share * visible:
            return "too_many_digits"
        return None

    def _other_language(self, lines):
        if not self.languages:
            return None
        return None if language("\n".join(lines)) in self.languages else "other_language"


def _out_of_range(of, least, most, count):
    """The reason to drop a document of `count()` words or characters."""
    if least is None and most is None:
        return None
    number = count()
    if least is not None and number < least:
        return f"too_few_{of}"
    return f"too_many_{of}" if most is not None and number > most else None


@functools.cache
def _kind(character):
    """Whether a character is a `symbol`, a `digit`, white `space` or something `else`."""
    category = unicodedata.category(character)
    if category[0] in "PS":
        return "symbol"
    if category == "Nd":
        return "digit"
    return "space" if character.isspace() else "else"


@functools.cache
def _identifier():
    """py3langid's identifier of languages; its model lies in the package."""
    try:
        from py3langid import langid
    except ImportError:
        raise InputError(
            "telling languages apart needs the package py3langid: pip install py3langid, or leave out languages."
        ) from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)


def language(text):
    """Returns the ISO 639 code of the language in which a text begins, as py3langid guesses it."""
    return _identifier().classify(text[:_LANGUAGE_CHARACTERS])[0]


def language_identifier_version():
    """Returns the name and version of what tells languages apart, which decides what is kept."""
    _identifier()
    return f"py3langid {metadata.version('py3langid')}"


def _check_languages(languages):
    known = sorted(set(_identifier().nb_classes))
    for code in languages:
        if code not in known:
            near = difflib.get_close_matches(code, known, n=1, cutoff=0.5)
            raise InputError(
                f"the language {code!r} is not known; languages are ISO 639 codes"
                + (f": did you mean {near[0]!r}? Known" if near else ". Known")
                + f" are {', '.join(known)}."
            )
