"""The library's settings: which environments there are, and that an error repeats nothing of what was given."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from photoflux.settings import get_settings


@pytest.mark.parametrize("name", ["", "development", "production"])
def test_an_environment_is_named_or_not(monkeypatch: pytest.MonkeyPatch, name: str):
    assert get_settings().environment == ""
    monkeypatch.setenv("PHOTOFLUX_ENVIRONMENT", name)
    assert get_settings().environment == name


def test_a_name_that_is_none_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch):
    for name in ("PRODUCTION", "staging", "hush-hush"):
        monkeypatch.setenv("PHOTOFLUX_ENVIRONMENT", name)
        with pytest.raises(ValidationError) as caught:
            get_settings()
        assert name not in str(caught.value)
