"""Which expressions are nothing but exact strings, prefixes, suffixes or path templates: all that Istio can match.

A conservative parser: what it reads means the same in RE2 (whole match, ASCII), and what it can't read it refuses.
The language of an expression is kept as a finite union of sequences of literal text and `.*`; it is expressible when
each sequence is one of Istio's forms. Source: RE2 syntax; Istio, AuthorizationPolicy «Rule».
"""

from __future__ import annotations

from enum import Enum
from itertools import product

import msgspec

from spliceway.policy.errors import SplicewayError

#: Most strings that an expression may stand for.
MAX_FORMS = 128
#: Most repetitions that are written out.
_MAX_REPEAT = 16
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_SPECIAL = frozenset("\\^$.|?*+()[{")
_DIGITS = frozenset("0123456789")
#: What `{*}` of a path template stands for in Envoy, in one segment (uri_template, «pchar»).
TEMPLATE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()+,;:@=")
#: What no normalised path has: encoded or read as something else (httppath), or where a query begins.
_NEVER = frozenset('"<>\\^`{|}#?')
_POSSIBLE = frozenset(map(chr, range(0x21, 0x7F))) - _NEVER


class PatternError(SplicewayError):
    """An expression that none of Istio's forms is equal to."""


class Wild(Enum):
    """What stands in a sequence beside literal text."""

    ANY = ".*"
    SOME = ".+"
    SEGMENT = "{*}"
    SEGMENTS = "{**}"


Sequence = tuple[str | Wild, ...]
_Language = frozenset[Sequence]
_EMPTY: _Language = frozenset({()})


class Form(msgspec.Struct, frozen=True):
    """One of Istio's forms: text that begins with `prefix` and ends with `suffix`, both without overlap.

    `exact`: it is `prefix`, whole. `excluded`: these texts are not meant, though prefix and suffix fit. `template`: it
    is a path template instead, of the path without the query.
    """

    prefix: str = ""
    suffix: str = ""
    exact: bool = False
    excluded: tuple[str, ...] = ()
    template: str = ""

    @property
    def everything(self) -> bool:
        """Whether every text has this form."""
        return not (self.exact or self.prefix or self.suffix or self.excluded or self.template)


def forms(pattern: str) -> tuple[Form, ...]:
    """The forms that together are equal to the expression (empty: it is everything). Raises PatternError."""
    if not pattern:
        return (Form(),)
    try:
        language = _Parser(pattern).whole()
    except RecursionError:
        raise PatternError("hundreds of brackets in each other have no counterpart") from None
    plain = {sequence for sequence in language if not _has_template(sequence)}
    found = [_form(sequence) for sequence in plain]
    found += _templates(language - plain)
    if any(form.everything for form in found):
        return (Form(),)
    return tuple(sorted(found, key=lambda form: (not form.exact, form.prefix, form.suffix, form.template)))


def _form(sequence: Sequence) -> Form:
    match sequence:
        case ():
            return Form(exact=True)
        case (str(text),):
            return Form(text, exact=True)
        case (Wild.ANY,):
            return Form()
        case (Wild.SOME,):
            return Form(excluded=("",))
        case (str(text), Wild.ANY):
            return Form(text)
        case (str(text), Wild.SOME):
            return Form(text, excluded=(text,))
        case (Wild.ANY, str(text)):
            return Form(suffix=text)
        case (Wild.SOME, str(text)):
            return Form(suffix=text, excluded=(text,))
        case (str(first), Wild.ANY | Wild.SOME as wild, str(last)):
            return Form(first, last, excluded=_overlaps(first, last, touching=wild is Wild.SOME))
    raise PatternError("text between two of `.*` has no counterpart")


def _overlaps(first: str, last: str, *, touching: bool) -> tuple[str, ...]:
    """Texts that begin with the one and end with the other, and are too short to have both side by side."""
    found = [first + last[k:] for k in range(1, min(len(first), len(last)) + 1) if first.endswith(last[:k])]
    # The shorter one may stand wholly inside the longer one.
    if len(last) < len(first) and first.endswith(last):
        found.append(first)
    if len(first) < len(last) and last.startswith(first):
        found.append(last)
    return tuple(sorted({*found, *((first + last,) if touching else ())}))


def _has_template(sequence: Sequence) -> bool:
    return Wild.SEGMENT in sequence or Wild.SEGMENTS in sequence


def _templates(language: frozenset[Sequence]) -> list[Form]:
    """Templates say nothing of the query: each must be there with every query, and without one."""
    bare = {sequence for sequence in language if "?" not in "".join(_texts(sequence))}
    if {_joined((*sequence, "?", Wild.ANY)) for sequence in bare} != language - bare:
        raise PatternError("a path template is matched without the query: write `(\\?.*)?` behind it")
    found = []
    for sequence in bare:
        text = "".join(part if isinstance(part, str) else part.value for part in sequence)
        segments = text.removeprefix("/").split("/")
        wild = [segment for segment in segments if "{" in segment]
        if (
            not text.startswith("/")
            or Wild.ANY in sequence
            or Wild.SOME in sequence
            or any(segment not in ("{*}", "{**}") for segment in wild)
            or "{**}" in wild[:-1]
            or any(not TEMPLATE.issuperset(segment) for segment in segments if segment not in wild)
        ):
            raise PatternError("it is no path template: `{*}` and `{**}` are whole segments, `{**}` the last of them")
        found.append(Form(template=text))
    return found


def _texts(sequence: Sequence) -> list[str]:
    return [part for part in sequence if isinstance(part, str)]


def _joined(parts: Sequence) -> Sequence:
    """Neighbours that are of one kind made one."""
    found: list[str | Wild] = []
    for part in parts:
        last = found[-1] if found else None
        if part == "":
            continue
        if isinstance(part, str) and isinstance(last, str):
            found[-1] = last + part
        elif part in (Wild.ANY, Wild.SOME) and last in (Wild.ANY, Wild.SOME):
            if part is last is Wild.SOME:
                raise PatternError("`.+` twice has no counterpart")
            found[-1] = Wild.SOME if Wild.SOME in (part, last) else Wild.ANY
        else:
            found.append(part)
    return tuple(found)


class _Parser:
    """Recursive descent over one expression."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def whole(self) -> _Language:
        """The language of all of it."""
        found = self._alternatives(top=True)
        if self._at != len(self._text):
            self._fail()
        return found

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _fail(self) -> None:
        raise PatternError(f"`{self._text[self._at : self._at + 12]}` has no counterpart")

    def _alternatives(self, *, top: bool = False) -> _Language:
        found = self._concatenation(top)
        while self._take("|"):
            found |= self._concatenation(top)
            _check(found)
        return found

    def _concatenation(self, top: bool) -> _Language:
        found = _EMPTY
        if top:
            self._take("^")  # the whole text must match in any case
        while (char := self._peek()) and char not in "|)":
            if top and char == "$" and self._text[self._at + 1 : self._at + 2] in ("", "|"):
                self._at += 1
                break
            found = _concat(found, self._repeated())
        return found

    def _repeated(self) -> _Language:
        start = self._at
        if self._take(".*"):
            self._no_more()
            return frozenset({(Wild.ANY,)})
        if self._take(".+"):
            self._no_more()
            return frozenset({(Wild.SOME,)})
        chars = self._characters()
        inner = None if chars is not None else self._atom()
        if self._take("?"):
            self._no_more()
            return _EMPTY | (inner if inner is not None else _single(chars))
        if self._peek() in ("*", "+"):
            return self._template(chars, start)
        if self._peek() == "{":
            low, high = self._bounds()
            one = inner if inner is not None else _single(chars)
            found: _Language = frozenset()
            power = _EMPTY
            for count in range(high + 1):
                if count:
                    power = _concat(power, one)
                if count >= low:
                    found |= power
                    _check(found)
            return found
        return inner if inner is not None else _single(chars)

    def _template(self, chars: frozenset[str] | None, start: int) -> _Language:
        """Endless repetitions: of what Envoy's path templates stand for, and of nothing else."""
        times = self._peek()
        path = chars & _POSSIBLE if chars is not None and "?" not in chars else frozenset()
        if times == "+" and path == TEMPLATE:
            wild = Wild.SEGMENT
        elif times == "*" and path == TEMPLATE | {"/"}:
            wild = Wild.SEGMENTS
        else:
            raise PatternError(f"`{self._text[start : self._at + 1]}` repeats without end, and is no `.*`")
        self._at += 1
        self._no_more()
        return frozenset({(wild,)})

    def _no_more(self) -> None:
        if self._peek() and self._peek() in "*+?{":
            self._fail()

    def _bounds(self) -> tuple[int, int]:
        end = self._text.find("}", self._at)
        parts = self._text[self._at + 1 : end].split(",") if end > 0 else []
        if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and len(part) < 3 for part in parts):
            self._fail()
        low, high = int(parts[0]), int(parts[-1])
        if not low <= high <= _MAX_REPEAT:
            self._fail()
        self._at = end + 1
        self._no_more()
        return low, high

    def _characters(self) -> frozenset[str] | None:
        """One character or a class of them; None: something else stands here."""
        char = self._peek()
        if char == "\\":
            self._at += 1
            return self._escaped()
        if char == "[":
            self._at += 1
            return self._class()
        if char in _SPECIAL or not " " <= char <= "~":
            return None
        self._at += 1
        return frozenset({char})

    def _escaped(self) -> frozenset[str]:
        char = self._peek()
        self._at += 1
        if char == "d":
            return _DIGITS
        if char == "x":
            digits = self._text[self._at : self._at + 2]
            if len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
                code = int(digits, 16)
                if 0x20 <= code < 0x7F:
                    self._at += 2
                    return frozenset({chr(code)})
        elif char in _PUNCTUATION and char:
            return frozenset({char})
        self._at -= 2
        self._fail()
        return frozenset()

    def _class(self) -> frozenset[str]:
        negated = self._take("^")
        found: set[str] = set()
        first = True
        while first or self._peek() != "]":
            low = self._member()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1 or min(low) > min(high):
                    self._fail()
                low = frozenset(map(chr, range(ord(min(low)), ord(min(high)) + 1)))
            found |= low
            first = False
        self._at += 1
        return frozenset(map(chr, range(0x100))) - found if negated else frozenset(found)

    def _member(self) -> frozenset[str]:
        char = self._peek()
        if not " " <= char <= "~" or not char or char == "[":
            self._fail()  # also `[:alpha:]`
        self._at += 1
        return self._escaped() if char == "\\" else frozenset({char})

    def _atom(self) -> _Language:
        if not self._take("("):
            self._fail()
        if self._peek() == "?" and not self._take("?:"):
            self._fail()
        found = self._alternatives()
        if not self._take(")"):
            self._fail()
        return found


def _single(chars: frozenset[str] | None) -> _Language:
    found = frozenset((char,) for char in chars or ())
    _check(found)
    return found


def _concat(first: _Language, second: _Language) -> _Language:
    if len(first) * len(second) > MAX_FORMS:
        _too_many()
    return frozenset(_joined((*one, *other)) for one, other in product(first, second))


def _check(language: _Language) -> None:
    if len(language) > MAX_FORMS:
        _too_many()


def _too_many() -> None:
    raise PatternError(f"it stands for more than {MAX_FORMS} strings")
