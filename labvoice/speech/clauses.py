"""Splits streamed text for synthesis: into clauses while the listener waits, else sentences."""

from __future__ import annotations

import re

from labvoice.speech.phonemes import ABBREVIATION_END

_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]*]*(?=\s)|\n""")
# A comma after a letter ends a clause; after a digit it may be part of a number.
_CLAUSE_END = re.compile(r"(?<=[^\W\d_])[,;!?]|[,;:—–](?=\s)|\s-(?=\s)")
_JOINING_WORD = re.compile(
    r"(?<=\s)(?=(?:and|but|or|so|because|while|when|where|which|who|if|then|although|unless)\s)",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"^\s*\d+\.\s*$")
_MIN_WORDS_BEFORE_JOINING_WORD = 6


class ClauseCutter:
    """Collects text as a language model streams it, and returns complete clauses or sentences.

    The joined output equals the input, except for a comma added where a clause is cut before a
    joining word, for a natural pause.
    """

    def __init__(self) -> None:
        self._text = ""

    def push(self, text: str, *, urgent: bool) -> list[str]:
        """Adds text; returns the parts that are now complete.

        Args:
            text: The next piece, of any length.
            urgent: Whether to return clauses; otherwise only whole sentences.
        """
        self._text += text
        ready = []
        while (end := self._sentence_end()) or (urgent and (end := self._clause_end())):
            ready.append(self._cut(end))
            urgent = False
        return ready

    def flush(self) -> list[str]:
        """Returns the rest."""
        rest = self._cut(len(self._text))
        return [rest] if rest.strip() else []

    def _cut(self, end: int) -> str:
        done, self._text = self._text[:end], self._text[end:]
        if done.endswith((" ", "\t")) and done.rstrip()[-1:].isalnum():
            return done.rstrip() + ", "
        return done

    def _sentence_end(self) -> int:
        for match in _SENTENCE_END.finditer(self._text):
            done = self._text[: match.end()]
            abbreviated = match[0].startswith(".") and ABBREVIATION_END.search(done)
            if done.strip() and not abbreviated and not _LIST_NUMBER.match(done):
                return match.end()
        return 0

    def _clause_end(self) -> int:
        for match in _CLAUSE_END.finditer(self._text):
            if match[0] in "!?" or _words(self._text[: match.end()]):
                return match.end()
        for match in _JOINING_WORD.finditer(self._text):
            if _words(self._text[: match.start()]) >= _MIN_WORDS_BEFORE_JOINING_WORD:
                return match.start()
        return 0


def _words(text: str) -> int:
    return len(re.findall(r"\w+(?:['’.,:]\w+)*", text))
