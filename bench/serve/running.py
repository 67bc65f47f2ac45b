"""Waits for a server that was just started."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

PATIENCE = 120
"""Seconds in which the server has to be ready."""


def wait(url: str) -> None:
    """Waits until the server at `url` has loaded its model."""
    start = time.monotonic()
    while True:
        try:
            urllib.request.urlopen(url + "/health").close()
            return
        except (urllib.error.URLError, ConnectionError) as error:
            if time.monotonic() - start > PATIENCE:
                raise SystemExit(f"the server is not ready after {PATIENCE} s: {error}") from error
        time.sleep(0.2)
