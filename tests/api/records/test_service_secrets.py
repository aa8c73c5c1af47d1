from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.records.service_secrets import pepper, service_secret
from photoflux.vault import open_keyring


def test_a_secret_is_made_once_and_is_the_same_for_all(own_state: Path):
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: service_secret(open_keyring(), "refresh"), range(8)))
    assert len(made) == 1 and len(made.pop()) == 32


def test_each_purpose_has_its_own_and_the_pepper_stays_where_it_was(own_state: Path):
    keyring = open_keyring()
    assert service_secret(keyring, "refresh") != pepper(keyring) == service_secret(keyring, "pepper")
    assert sorted(keyring.store.list("secrets/")) == ["secrets/pepper", "secrets/refresh"]
    assert service_secret(keyring, "refresh") not in keyring.store.get("secrets/refresh")


@pytest.mark.parametrize("name", ["", "../pepper", "Pepper", "a/b", "-"])
def test_a_name_stays_within_its_folder(own_state: Path, name: str):
    with pytest.raises(ValueError, match="lower-case"):
        service_secret(open_keyring(), name)
