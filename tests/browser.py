"""A browser for pages: the first one of this machine that can be driven."""

import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Programs that can open a page, in the order in which they are looked for."""

FOUND = next(filter(None, map(shutil.which, BROWSERS)), None)
"""Path of the browser; None if there is none."""

NONE_FOUND = f"there is none of the browsers {', '.join(BROWSERS)}"
"""Reason to skip a test."""
