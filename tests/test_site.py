"""Every page of the built book in Chromium: nothing from outside, no error, players by keyboard, readable by all.

    jupyter-book build . && npm install --prefix FOLDER axe-core
    AXE=FOLDER/node_modules/axe-core/axe.min.js python -m pytest tests/test_site.py

Debian's ``chromium`` package is enough; so is ``python -m playwright install chromium``. SITE names another folder.
"""

import functools
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = Path(os.environ.get("SITE", ROOT / "_build" / "html"))
AXE = Path(os.environ.get("AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
PAGES = [f"book/{path.stem}.html" for path in sorted((ROOT / "book").iterdir()) if path.suffix in (".ipynb", ".md")]
PAGES += ["search.html?q=margin"]
DESKTOP, PHONE = dict(width=1280, height=900), dict(width=390, height=844)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


def pages_with(text: str) -> list[str]:
    """Pages of the built book that hold a piece of HTML."""
    built = [path for path in PAGES if (SITE / path.split("?")[0]).is_file()]
    return [path for path in built if text in (SITE / path.split("?")[0]).read_text(encoding="utf-8")]


def missing() -> str:
    """What is not there to test with, in words; empty if all is."""
    if not (SITE / "index.html").exists():
        return f"no built book in {SITE}: run jupyter-book build ."
    if not AXE.exists():
        return f"no axe-core at {AXE}: npm install axe-core, then set AXE"
    return ""


@pytest.fixture(scope="session", autouse=True)
def ready() -> None:
    if why := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


@pytest.fixture(scope="session")
def base(ready) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser(ready):
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        except Error as error:
            why = f"no Chromium: {str(error).splitlines()[0]}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
        yield browser
        browser.close()


@pytest.fixture
def opened(base, browser):
    """Opens a page with all outside requests refused; collects what went wrong."""
    pages = []

    def open_page(path: str, theme: str = "light", size: dict = DESKTOP):
        page = browser.new_page(color_scheme=theme, viewport=size)
        pages.append(page)
        wrong: list[str] = []

        def refuse_outside(route):
            if route.request.url.startswith((base, "data:", "blob:")):
                route.continue_()
            else:
                wrong.append(f"outside: {route.request.url}")
                route.abort()

        page.route("**/*", refuse_outside)
        page.on("response", lambda reply: wrong.append(f"{reply.status} {reply.url}") if reply.status >= 400 else None)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(base + path, wait_until="load")
        page.wait_for_timeout(700)  # MathJax and the theme go on after load
        return page, wrong

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_page_is_clean_and_accessible(opened, path, theme):
    page, wrong = opened(path, theme)
    assert page.locator("html").get_attribute("data-theme") == theme
    assert page.locator("mjx-merror").count() == 0
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [
        (rule["id"], [node["html"][:160] for node in rule["nodes"]][:5])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert not wrong and not serious, (wrong, serious)


@pytest.mark.parametrize("path", pages_with('class="math'))
def test_maths_is_typeset(opened, path):
    page, _ = opened(path)
    page.wait_for_function("() => MathJax.startup.promise.then(() => true)", timeout=10_000)
    bare = page.evaluate(
        """() => [...document.querySelectorAll('main .math')].filter(e => !e.querySelector('mjx-container'))
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert page.locator("main .math mjx-container").count() and not bare
    assert page.locator("mjx-container").first.evaluate("e => e.getBoundingClientRect().height") > 5


def test_search_finds_margin(opened):
    page, wrong = opened("search.html?q=margin")
    page.locator("#search-results li a").first.wait_for(timeout=20_000)
    page.wait_for_function("() => !document.querySelector('#search-progress')?.textContent.includes('Searching')")
    found = [link.get_attribute("href").split("?")[0] for link in page.locator("#search-results li a").all()]
    assert "book/03_mixup_and_losses.html" in [link.split("#")[0].lstrip("./") for link in found], found
    assert not wrong


@pytest.mark.parametrize("path", PAGES)
def test_page_does_not_scroll_sideways_on_a_phone(opened, path):
    page, _ = opened(path, size=PHONE)
    page.wait_for_load_state("networkidle")  # the search page fetches what it has found
    wide = page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] :
        [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
        .slice(0, 5).map(e => e.outerHTML.slice(0, 160))"""
    )
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), wide


@pytest.mark.parametrize("path", PAGES)
def test_pictures_and_sounds_are_named(opened, path):
    page, _ = opened(path)
    for picture in page.locator("article img").all():
        alt = picture.get_attribute("alt") or ""
        assert len(alt) > 5 and not alt.startswith(("_images", "../_images")), picture.get_attribute("src")[:80]
    unframed = page.evaluate(
        """() => [...document.querySelectorAll('article .cell_output img')]
        .filter(e => !e.closest('figure')?.querySelector('figcaption')).map(e => e.alt)"""
    )
    assert not unframed, "pictures without a caption"
    for sound in page.locator("audio").all():
        assert sound.get_attribute("aria-label")
    notebook = ROOT / Path(path.split("?")[0]).with_suffix(".ipynb")
    promised = re.findall(r'"name": "(fig-[a-z0-9-]+)"', notebook.read_text("utf-8")) if notebook.exists() else []
    absent = [name for name in promised if not page.locator(f"figure#{name} img").count()]
    assert not absent, "figures that the notebook names and the page does not show"


def test_all_widgets_are_in_the_book():
    chapters = ("03_mixup_and_losses", "04_perturbation", "06_scores", "explorer")
    assert {f"book/{name}.html" for name in chapters} <= set(pages_with("frame-player"))


def chosen(box) -> tuple[str, ...]:
    """The labels that the controls of a frame player stand at."""
    return tuple(box.locator("input, select").evaluate_all("all => all.map(e => e.ariaValueText ?? e.value)"))


def check_frame(box, data: dict) -> dict:
    """A frame player shows what its controls stand at, and each control offers what follows from those before it."""
    path = chosen(box)
    frame = data["labels"].index(list(path))
    picture, sound, words = box.locator("img"), box.locator("audio"), box.locator("[role=status]")
    shown = dict(pictures=picture.get_attribute("src"), alts=picture.get_attribute("alt"))
    if "sounds" in data:
        shown |= dict(sounds=sound.get_attribute("src"), names=sound.get_attribute("aria-label"))
    if "words" in data:
        shown["words"] = words.text_content()
    differing = [part for part, what in shown.items() if data[part][frame] != what]
    assert not differing, (path, differing)
    for at, control in enumerate(box.locator("input, select").all()):
        offered = list(dict.fromkeys(label[at] for label in data["labels"] if label[:at] == list(path[:at])))
        if control.evaluate("e => e.tagName") == "SELECT":
            assert control.locator("option").all_text_contents() == offered, path
        else:
            assert control.get_attribute("max") == str(len(offered) - 1), path
            assert offered[int(control.input_value())] == path[at]
            assert box.locator("label").nth(at).locator("output").inner_text() == path[at]
    return shown


@pytest.mark.parametrize("path", pages_with("frame-player"))
def test_frame_players_move_by_keyboard(opened, path):
    page, wrong = opened(path)
    for box in page.locator(".frame-player").all():
        script = box.evaluate("e => e.nextElementSibling.textContent")
        data = json.loads(re.search(r"const data = (\{.*?\}), root", script)[1])
        assert page.get_by_role("group", name=box.get_attribute("aria-label"), exact=True).count()
        for control in box.locator("input, select").all():
            assert box.locator(f"label[for={control.get_attribute('id')}]").inner_text().strip()
            assert control.get_attribute("data-lm-suppress-shortcuts") == "true"  # JupyterLab takes the keys otherwise
            control.focus()
            page.keyboard.press("Home")
            before = check_frame(box, data)
            slides = control.evaluate("e => e.type === 'range'")
            for place in range(1, control.evaluate("e => e.max ? Number(e.max) + 1 : e.length")):
                page.keyboard.press("ArrowUp" if slides else "ArrowDown")  # up a slider, down a list
                assert control.evaluate("e => e.max ? Number(e.value) : e.selectedIndex") == place
                after = check_frame(box, data)
                assert all(after[part] != before[part] for part in before), (path, chosen(box))
                before = after
    assert not wrong


@pytest.mark.parametrize("path", pages_with("base64,"))
def test_a_page_holds_at_most_three_megabytes_of_pictures_and_sounds(path):
    parts = re.findall(r"data:(?:audio|image)/[^\"')]+", (SITE / path.split("?")[0]).read_text(encoding="utf-8"))
    assert sum(map(len, parts)) <= 3_000_000


TO_THE_END = """sources => Promise.all(sources.map(source => new Promise(done => {
  const sound = new Audio(source);
  sound.volume = 0;
  sound.playbackRate = 4;
  sound.onended = () => done("");
  sound.onerror = () => done(sound.error.message);
  sound.play().catch(() => {});  // the error says more
})))"""


@pytest.mark.parametrize("path", pages_with("data:audio"))
def test_every_sound_plays_to_its_end(opened, path):
    page, _ = opened(path)
    sounds = re.findall(r"data:audio/[^\"')]+", (SITE / path).read_text(encoding="utf-8"))
    for k in range(0, len(sounds), 8):
        assert page.evaluate(TO_THE_END, sounds[k : k + 8]) == [""] * len(sounds[k : k + 8])


PLAYING = "() => [...document.querySelectorAll('audio')].filter(a => !a.paused).length"


@pytest.mark.parametrize("path", pages_with("<audio"))
def test_one_sound_at_a_time_and_it_goes_on_when_the_slider_moves(opened, path):
    page, wrong = opened(path)
    page.evaluate("() => document.querySelectorAll('audio').forEach(a => { a.loop = true; })")  # short ones would end
    sounds = page.locator("article audio")
    for k in range(min(2, sounds.count())):
        sounds.nth(k).evaluate("a => a.play()")
        assert page.evaluate(PLAYING) == 1
    if page.locator(".frame-player audio").count():
        sound = page.locator(".frame-player audio").first
        sound.evaluate("async a => { await a.play(); a.currentTime = 0.5; }")
        page.locator(".frame-player", has=page.locator("audio")).first.locator("input, select").last.focus()
        for key in ("ArrowUp", "ArrowDown", "ArrowUp"):  # they move lists, too
            page.keyboard.press(key)
        page.wait_for_timeout(300)
        page.wait_for_function(f"({PLAYING})() === 1", timeout=10_000)
        assert sound.evaluate("a => a.currentTime") > 0.4
    assert not wrong
