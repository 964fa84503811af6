"""The panel of a number or a name, in the pages of results and in the leaderboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def close_panel(page: Page, button: bool = False) -> None:
    """Close it by Escape or its button, and wait: the browser handles `close`, and a step back, after the key."""
    if button:
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
    else:
        page.keyboard.press("Escape")
    page.wait_for_url(
        lambda address: address.partition("#")[2] == "" or ("benchmark=" in address and "cell=" not in address)
    )
