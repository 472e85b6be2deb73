from __future__ import annotations

import pytest

from bench import privacy


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file /home/alice/data/x.npz", "no file ~/data/x.npz"),
        ("C:\\Users\\alice\\x is missing", "~\\x is missing"),
        ("GPU-12345678-1234-1234-1234-123456789abc is gone", "GPU-… is gone"),
        ("6/7 layers; a-b", "6/7 layers; a-b"),
    ],
)
def test_a_text_that_is_sent_names_no_home_and_no_device(text: str, shown: str) -> None:
    assert privacy.without_places(text) == shown


def test_a_text_that_is_recorded_does_not_name_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    privacy._own_name.cache_clear()
    monkeypatch.setattr("socket.gethostname", lambda: "box.lab.example")
    try:
        told = "alice@box: box.lab.example (box) refused; a toolbox, box2, box-a and box.py stay"
        kept = "(this host): (this host) ((this host)) refused; a toolbox, box2, box-a and box.py stay"
        assert privacy.without_host(told) == kept
    finally:
        privacy._own_name.cache_clear()
