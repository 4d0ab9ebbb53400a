"""The names of every configuration key, derived from the types.

A key ``auth.jwt.publicKey`` of a file is ``TASKCAST_AUTH_JWT_PUBLIC_KEY`` in the environment and
``--auth-jwt-public-key`` on the command line. Names that came first and differ are aliases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from taskcast_trio.config.schema import Config, Section
from taskcast_trio.config.secret import Secret

ENV_PREFIX: Final = "TASKCAST_"


@dataclass(frozen=True, slots=True)
class Key:
    """One value that can be set: a leaf of the tree of sections."""

    path: str
    """As in a file, dotted: ``auth.jwt.publicKey``."""
    type: Any
    """The annotation of the field, limits included."""
    env: str
    flag: str

    @property
    def bare(self) -> Any:
        """The type without ``None`` and without limits: ``int``, ``Secret``, a ``Literal`` ..."""
        return bare(self.type)

    @property
    def is_scalar(self) -> bool:
        """Whether one plain text can give the value: not for mappings and lists of mappings."""
        kind = self.bare
        return get_origin(kind) is Literal or (
            isinstance(kind, type) and issubclass(kind, (str, int, float, Secret))
        )

    @property
    def is_text_list(self) -> bool:
        return get_args(self.bare) == (str, ...)


def bare(annotation: Any) -> Any:
    """Strip ``Annotated`` and ``| None`` from an annotation."""
    if hasattr(annotation, "__metadata__"):
        return bare(annotation.__origin__)
    if get_origin(annotation) in (Union, UnionType):
        inner = [arg for arg in get_args(annotation) if arg is not NoneType]
        if len(inner) == 1:
            return bare(inner[0])
    return annotation


def limits(annotation: Any) -> msgspec.Meta:
    """Return the limits that ``Annotated`` gives a type, if any."""
    if hasattr(annotation, "__metadata__"):
        return next(m for m in annotation.__metadata__ if isinstance(m, msgspec.Meta))
    for arg in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ():
        if hasattr(arg, "__metadata__"):
            return limits(arg)
    return msgspec.Meta()


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


@cache
def fields_of(section: type[Section]) -> Mapping[str, tuple[str, Any]]:
    """Map each wire name of a section to its attribute and annotation."""
    hints = get_type_hints(section, include_extras=True)
    return {f.encode_name: (f.name, hints[f.name]) for f in msgspec.structs.fields(section)}


def _walk(section: type[Section], path: str, name: str) -> Iterator[Key]:
    for wire, (attribute, annotation) in fields_of(section).items():
        here, words = f"{path}{wire}", f"{name}{attribute}"
        if is_section(annotation):
            yield from _walk(annotation, f"{here}.", f"{words}_")
        else:
            env = ENV_PREFIX + words.upper()
            yield Key(here, annotation, env, "--" + words.replace("_", "-"))


KEYS: Final[Mapping[str, Key]] = {key.path: key for key in _walk(Config, "", "")}

_JWT = ("algorithm", "secret", "publicKey", "publicKeyFile", "issuer", "audience")
_LIFECYCLE = tuple(fields_of(Config)["storageLifecycle"][1].__struct_encode_fields__)
ENV_ALIASES: Final[Mapping[str, str]] = {
    **{KEYS[f"auth.jwt.{n}"].env.replace("AUTH_JWT", "JWT"): f"auth.jwt.{n}" for n in _JWT},
    **{
        KEYS[f"storageLifecycle.{n}"].env.replace("STORAGE_LIFECYCLE_", ""): f"storageLifecycle.{n}"
        for n in _LIFECYCLE
    },
    "TASKCAST_SQLITE_PATH": "dbPath",
}
"""Environment names that existing set-ups use; they win over the derived ones."""

CLIENT_ENV: Final = frozenset({"TASKCAST_URL", "TASKCAST_TOKEN", "TASKCAST_NODE", "TASKCAST_NODES"})
"""Variables of the client commands, of no meaning to the server."""

TEST_ENV_PREFIX: Final = "TASKCAST_TEST_"
