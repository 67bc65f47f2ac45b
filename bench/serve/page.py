"""Uses the pages of `tessera serve` in a headless Chromium as a person would, and checks what they show.

    pip install playwright            # the browser is the system's own: --chromium PATH
    python3 bench/serve/page.py [--tessera target/release/tessera] [--shots DIR]

Starts the servers it needs (smollm2, and tessera-mdlm for a canvas) with a data directory of their own. Prints a line a check and exits
with 1 at the first that fails; with --shots it keeps a picture of every page, light and dark, wide and at 360 pixels.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from running import wait

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240_000
"""Milliseconds for what the model has to compute, on a slow machine."""


@contextmanager
def server(tessera: str, model: str, port: int, data: str) -> Iterator[str]:
    """A running server; its address."""
    environment = {**os.environ, "TESSERA_DATA": data}
    process = subprocess.Popen([tessera, "serve", model, "--port", str(port), "--quiet"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait(url)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def passed(name: str, shown: object = "") -> None:
    """A line a check."""
    print(f"{name}: ok {shown}".rstrip(), flush=True)


def narrow(page: Page, url: str, name: str) -> None:
    """At 360 pixels nothing sticks out sideways."""
    page.set_viewport_size({"width": 360, "height": 740})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360, f"{url} is {wide} pixels wide at 360"
    passed(f"{name} at 360 pixels")


def chat(page: Page, url: str, shot) -> None:
    """Two recipes answer the same prompt; tokens are coloured; the texts are the same."""
    page.goto(url)
    # By keyboard alone: the skip link comes first, and Enter sends.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_label("Recipe", exact=True).fill("cascade")
    page.get_by_label("Second recipe").fill("plain")
    page.get_by_label("Most tokens").fill("48")
    box = page.get_by_label("Message")
    box.fill("Repeat this line five times: all about tides, every single day.")
    box.press("Enter")
    status = page.locator("#status")
    expect(status).to_have_text("Done", timeout=PATIENCE)
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator(".same")).to_have_text("The texts are equal, character by character.")
    guessed = page.locator(".answer").first.locator(".t.guessed").count()
    assert guessed > 0, "cascade shows no guessed token"
    assert page.locator(".answer").last.locator(".t.guessed").count() == 0, "the plain run guesses nothing"
    figures = page.locator(".figures").first.inner_text()
    assert re.search(r"\d+ passes · \d+ of \d+ guesses accepted", figures), figures
    passed("two recipes side by side", f"{guessed} guessed; {figures}")
    shot("chat")
    narrow(page, url, "the chat")
    shot("chat-360")
    # What is wrong is said in words.
    page.get_by_label("Recipe", exact=True).fill("cascad")
    page.get_by_label("Second recipe").fill("")
    box.fill("x")
    box.press("Enter")
    expect(status).to_contain_text("did you mean", timeout=PATIENCE)
    passed("a wrong recipe", status.inner_text())
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)


def catalogue(page: Page, url: str, shot) -> None:
    """Search and filters, and a method's own page with a check that runs."""
    page.set_viewport_size({"width": 1100, "height": 900})
    page.goto(url + "/methods")
    all_of_them = page.locator(".cards > li").count()
    page.get_by_label("Role").select_option("draft")
    page.get_by_role("button", name="Show").click()
    drafts = page.locator(".cards > li").count()
    assert 0 < drafts < all_of_them, (drafts, all_of_them)
    page.get_by_label("Words").fill("no such words")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("Nothing matches.")).to_be_visible()
    passed("search and filters", f"{drafts} of {all_of_them} draft")
    page.goto(url + "/methods")
    shot("methods")
    narrow(page, url, "the catalogue")
    page.set_viewport_size({"width": 1100, "height": 900})
    page.get_by_role("link", name="Prompt lookup").first.click()
    expect(page.locator("#record")).to_contain_text("No record yet")
    page.get_by_role("button", name="Check it here").click()
    expect(page.locator("#status")).to_have_text("Done; the record is kept", timeout=PATIENCE)
    assert page.locator("#record svg").count() > 0, "the record has no plot"
    verdict = page.locator("#record .verdict").inner_text()
    passed("a check from the page", verdict)
    page.reload()
    expect(page.locator("#record .verdict")).to_have_text(verdict)
    shot("method")
    narrow(page, url, "a method's page")
    page.goto(url + "/methods?verdict=none")
    assert page.locator(".cards > li").count() == all_of_them - 1
    page.goto(url + "/docs")
    expect(page.get_by_role("heading", name="Interface")).to_be_visible()
    shot("docs")
    narrow(page, url, "the interface")
    page.set_viewport_size({"width": 1100, "height": 900})
    page.goto(url + "/methods/fasa")
    expect(page.get_by_text("It cannot be checked from this page")).to_be_visible()
    passed("what cannot be checked says why")


def canvas(page: Page, url: str, shot) -> None:
    """A model that fills masks shows its canvas, coloured by step."""
    page.set_viewport_size({"width": 1100, "height": 900})
    page.goto(url)
    page.get_by_label("Most tokens").fill("48")
    box = page.get_by_label("Text to continue")
    box.fill("Once upon a time there was a little")
    box.press("Enter")
    expect(page.locator("#status")).to_have_text("Done", timeout=PATIENCE)
    steps = {page.locator(f".t.filled.s{n}").count() > 0 for n in range(8)} - {False}
    assert steps and page.locator(".answer .t.filled").count() > 8, "nothing was filled"
    text = page.locator(".answer .text").inner_text()
    passed("a canvas", repr(text[:60]))
    shot("canvas")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tessera", default=str(ROOT / "target" / "release" / "tessera"))
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    parser.add_argument("--shots", type=Path)
    arguments = parser.parse_args()
    if not arguments.chromium:
        raise SystemExit("there is no chromium. Next: install it (Debian: apt-get install chromium), or --chromium PATH")
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1100, "height": 900})
            wrong: list[str] = []
            # A refused request is part of the test; everything else on the console is a fault.
            page.on("console", lambda m: wrong.append(m.text) if m.type == "error" and "400" not in m.text else None)
            page.on("pageerror", lambda e: wrong.append(str(e)))

            def shot(name: str, page: Page = page, scheme: str = scheme) -> None:
                if arguments.shots:
                    arguments.shots.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=arguments.shots / f"{name}-{scheme}.png", full_page=name != "methods")

            with server(arguments.tessera, "smollm2", 8393, data) as url:
                chat(page, url, shot)
                if scheme == "light":
                    catalogue(page, url, shot)
                else:
                    page.goto(url + "/methods/prompt-lookup")
                    shot("method")
            if scheme == "light":
                with server(arguments.tessera, "tessera-mdlm", 8394, data) as url:
                    canvas(page, url, shot)
            assert not wrong, wrong
            passed(f"nothing on the console ({scheme})")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
