"""JSON text at the edge: what is accepted, and how values are carried through byte for byte.

Values that are the caller's own (``data``, ``params``, ...) travel as :class:`msgspec.Raw`, the
bytes as they came. msgspec does not look inside them, so what no receiver could read is refused
here, for the whole body: bytes that are no UTF-8, numbers beyond the range of IEEE doubles, and
nesting deeper than a limit. Escaped lone surrogates are legal JSON text (JavaScript senders cut an
emoji between two pieces) but msgspec refuses them: they are masked while it decodes, and put back
into the raw values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from math import isinf
from typing import Any, Literal, get_args, get_origin

import msgspec

from .errors import BadRequest
from .model import AssignMode, DisconnectPolicy, Level, SeriesMode, Status

MAX_DEPTH = 128

_BOM = b"\xef\xbb\xbf"
_WINDOW = 1 << 16
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(set(range(256)) - _STEP.keys())
_MANY_DIGITS = b"0" * 200
_AS_ZEROS = bytes.maketrans(b"123456789E", b"000000000e")
_HUGE = re.compile(rb"(?<![\d.])\d(?:[\d.]{199,}+(?:[eE][+-]?\d+)?|[\d.]*+[eE]\+?\d{3,})")
_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")
_SURROGATE = re.compile(
    rb"(?<!\\)((?:\\\\)*)"
    rb"(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\(u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)


def one_line(text: bytes) -> bytes:
    """The same JSON with CR and LF between its tokens turned into spaces (inside strings there are
    none).
    """
    # By number, which takes a fifth of the time that text takes.
    return text.translate(_LINE_BREAKS) if 10 in text or 13 in text else text


def parse(body: bytes, type_: Any, *, max_depth: int = MAX_DEPTH) -> Any:
    """Decode ``body`` as ``type_``, with every check of this module.

    Raw values in the result are copies on one line, independent of ``body``.

    Raises:
        BadRequest: the body is no JSON, or not of that shape; the message names the place.
    """
    if body.startswith(_BOM):
        body = body[len(_BOM) :]
    if not body.strip():
        raise BadRequest("The request has no body; JSON is expected")
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"The body is not UTF-8: bad byte at offset {error.start}") from None
    check_limits(body, max_depth)
    mask = Mask.of(body)
    try:
        value = _decoder(type_).decode(mask.apply(body) if mask else body)
    except msgspec.ValidationError as error:
        raise BadRequest(_with_choices(str(error), type_)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest(f"The body nests deeper than {max_depth} levels") from None
    return _detach(value, mask, "$")


@cache
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)


_ENUM_FIELD = re.compile(r"^Invalid enum value .*\.(\w+)`$")
_CHOICES = {
    "status": Status,
    "level": Level,
    "seriesMode": SeriesMode,
    "assignMode": AssignMode,
    "disconnectPolicy": DisconnectPolicy,
}


def _with_choices(message: str, type_: Any) -> str:
    """The decoder's message, with the words that it would have taken."""
    found = _ENUM_FIELD.match(message)
    if found is None:
        return message
    choices = _own_choices(type_).get(found[1]) or get_args(_CHOICES.get(found[1]))
    return f"{message}: expected {', '.join(choices)}" if choices else message


def _own_choices(type_: Any) -> dict[str, tuple[str, ...]]:
    """By their names, the words that fields of this very type take."""
    if not (isinstance(type_, type) and issubclass(type_, msgspec.Struct)):
        return {}
    return {
        field.encode_name: get_args(field.type)
        for field in msgspec.structs.fields(type_)
        if get_origin(field.type) is Literal
    }


def _outside_strings(body: bytes) -> bytes:
    """``body`` without its strings, in linear time and without a list as long as the body.

    Of malformed JSON, what is left is right up to the first fault; the decoder refuses the rest.
    """
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = bytearray()
    inside = 0
    for start in range(0, len(text), _WINDOW):
        parts = text[start : start + _WINDOW].split(b'"')
        outside += b"".join(parts[inside::2])
        inside = (inside + len(parts) - 1) % 2
    return bytes(outside)


def check_limits(body: bytes, max_depth: int) -> None:
    """Refuse (BadRequest) what is legal JSON but more than every receiver can read.

    That is arrays and objects nested deeper than ``max_depth``, and numbers that no IEEE double can
    hold.
    """
    maybe_deep = body.count(b"[") + body.count(b"{") > max_depth
    zeros = body.translate(_AS_ZEROS)  # much faster than a regular expression
    # Only a number with a long exponent or very many digits can leave the double range.
    maybe_huge = b"e000" in zeros or b"e+000" in zeros or _MANY_DIGITS in zeros
    if not maybe_deep and not maybe_huge:
        return
    tokens = _outside_strings(body)
    if maybe_deep:
        brackets = tokens.translate(None, _NO_BRACKETS)
        for depth in accumulate(map(_STEP.__getitem__, brackets)):
            if depth > max_depth:
                raise BadRequest(f"The body nests deeper than {max_depth} levels")
    if maybe_huge:
        for match in _HUGE.finditer(tokens):
            try:
                huge = isinf(float(match[0]))
            except ValueError:
                continue  # no number: the decoder refuses it with a better message
            if huge:
                raise BadRequest("The body holds a number outside the range of a double")


class Mask:
    """Hides lone surrogate escapes from a decoder that refuses them, without moving a byte.

    The backslash of each becomes a byte that stands before no other ``u`` of the body, so the way
    back is exact.
    """

    _CANDIDATES = bytes([0x7F, *range(0x23, 0x5B), *range(0x5D, 0x7F)])

    def __init__(self, byte: bytes) -> None:
        self._byte = byte
        self._masked = re.compile(re.escape(byte) + rb"(?=u[dD][89a-fA-F][0-9a-fA-F]{2})")
        # Escapes count too: what they decode to would look the same.
        self._alike = re.compile(
            rb"%b(?:u|\\u0075)|\\u00%02x" % (re.escape(byte), byte[0]), re.IGNORECASE
        )

    @classmethod
    def of(cls, body: bytes) -> Mask | None:
        """The mask that ``body`` needs; None where it holds no lone surrogate.

        Raises:
            BadRequest: every candidate for the mask stands in the body already.
        """
        if b"\\ud" not in body and b"\\uD" not in body:
            return None
        if not any(match[3] for match in _SURROGATE.finditer(body)):
            return None
        for number in cls._CANDIDATES:
            mask = cls(bytes([number]))
            if not mask._alike.search(body):
                return mask
        raise BadRequest(
            "The body mixes lone surrogates with too many look-alikes of their escapes"
        )

    def apply(self, body: bytes) -> bytes:
        def hide(match: re.Match[bytes]) -> bytes:
            lone = match[3]
            return match[0] if lone is None else match[1] + self._byte + lone

        return _SURROGATE.sub(hide, body)

    def undo(self, text: bytes) -> bytes:
        return self._masked.sub(rb"\\", text)

    def marks(self, text: str) -> bool:
        return self._masked.search(text.encode()) is not None


def _detach(value: Any, mask: Mask | None, path: str) -> Any:
    """Copy raw values out of the request's buffer, unmask them, and refuse lone surrogates in plain
    text.
    """
    if isinstance(value, msgspec.Raw):
        text = one_line(bytes(value))
        return msgspec.Raw(mask.undo(text) if mask else text)
    if isinstance(value, msgspec.Struct):
        if mask is None:
            for name in _carriers(type(value)):
                field = getattr(value, name)
                if field is not msgspec.UNSET:
                    msgspec.structs.force_setattr(value, name, _detach(field, None, path))
            return value
        for name, wire_name in zip(
            value.__struct_fields__, value.__struct_encode_fields__, strict=True
        ):
            field = getattr(value, name)
            new = _detach(field, mask, f"{path}.{wire_name}")
            if new is not field:
                msgspec.structs.force_setattr(value, name, new)
        return value
    if isinstance(value, list):
        return [_detach(item, mask, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, str) and mask and mask.marks(value):
        raise BadRequest(f"A lone surrogate can't stand here - at `{path}`")
    return value


@cache
def _carriers(type_: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields that may hold raw values, themselves or inside."""
    return tuple(field.name for field in msgspec.structs.fields(type_) if _may_carry(field.type))


def _may_carry(hint: Any) -> bool:
    if hint is msgspec.Raw or (isinstance(hint, type) and issubclass(hint, msgspec.Struct)):
        return True
    return any(_may_carry(inner) for inner in get_args(hint))


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def fields_of(text: bytes) -> dict[bytes, bytes] | None:
    """The members of a JSON object, each key and value as its own text; None where there is none.

    Keys are spelled as :func:`msgspec.json.encode` spells them, and of equal keys the last wins.
    Text that can't be read (it has not passed :func:`parse`, or look-alikes of every mask were
    joined in it on purpose) counts as no object: who asks may be halfway through a store's step.
    """
    if text[:1] != b"{":
        return None
    try:
        mask = Mask.of(text)
        members = _OBJECT.decode(mask.apply(text) if mask else text)
    except (BadRequest, msgspec.DecodeError, UnicodeDecodeError):
        return None
    restore: Callable[[bytes], bytes] = mask.undo if mask else bytes
    return {restore(msgspec.json.encode(key)): restore(bytes(v)) for key, v in members.items()}
