"""docs/configuration.md is what the types say."""

from __future__ import annotations

from taskcast_trio.config.keys import KEYS

from . import reference


def test_the_page_is_what_the_types_say() -> None:
    """If this fails: python -m tests.docs.reference"""
    assert reference.PAGE.read_text("utf-8") == reference.page()


def test_every_key_is_there_with_all_of_its_names() -> None:
    page = reference.page()
    for key in KEYS.values():
        assert f"| `{key.path}` |" in page
        assert f"`{key.env}`" in page
        if key.is_scalar or key.is_text_list:
            assert f"`{key.flag}`" in page
