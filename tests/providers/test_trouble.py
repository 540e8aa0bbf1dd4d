"""Trouble: what a status code and a vendor's words mean."""

from __future__ import annotations

import pytest

from tidemill.providers.trouble import REMEDIES, ProviderError, Trouble, trouble_of


@pytest.mark.parametrize(
    ("code", "said", "trouble"),
    [
        (401, "", Trouble.unauthorized),
        (403, "", Trouble.forbidden),
        (404, "", Trouble.missing),
        (405, "", Trouble.missing),
        (429, "", Trouble.throttled),
        (400, "", Trouble.refused),
        (500, "", Trouble.down),
        (503, "", Trouble.down),
        (302, "", Trouble.unreadable),
        (200, "status 401: bad token", Trouble.unauthorized),
        (200, "API requests too frequent", Trouble.throttled),
        (200, "no idea", Trouble.refused),
    ],
)
def test_a_code_or_words_say_what_is_wrong(code: int, said: str, trouble: Trouble) -> None:
    assert trouble_of(code, said) is trouble


def test_every_trouble_has_a_remedy() -> None:
    for trouble in Trouble:
        error = ProviderError("vast", trouble, "detail")
        assert str(error) == f"vast: {trouble} (detail); {REMEDIES[trouble]}"
