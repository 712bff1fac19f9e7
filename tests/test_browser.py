"""The built book in a real browser: every page, light, dark and at a phone's width.

These tests look at ``_build/html`` as it is; `make check` runs them after `make book`.
"""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rdl_study.npm import Package, npm_files
from rdl_study.store import project_folder

#: Accessibility rules, MPL-2.0.
AXE = Package(
    "axe-core", "4.14.1",
    "1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b73"
    "4f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5", ("axe.min.js",),
)  # fmt: skip
SITE = project_folder() / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = sorted(str(x.relative_to(SITE)) for x in SITE.rglob("*.html") if "_static" not in x.parts)
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390)}
FADED = "Promise.allSettled(document.getAnimations().map(each => each.finished)).then(() => null)"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WITHOUT_IMAGE = """[...document.images]
  .filter((x) => x.loading !== "lazy" && !(x.complete && x.naturalWidth)).map((x) => x.src)"""
SERIOUS = """async () => (await axe.run()).violations
  .filter((x) => ["serious", "critical"].includes(x.impact))
  .map((x) => `${x.id}: ${x.nodes.slice(0, 3).map((one) => one.html.slice(0, 160)).join(" | ")}`)"""
ROWS = """rows => rows.map(
  (x) => [x.querySelector("[data-part=name]").textContent, +x.dataset.score])"""
ANSWERED = """query => document.querySelector("[data-part=asked]").textContent === query
  && document.querySelector("[data-part=answer]").getAttribute("aria-busy") === "false\""""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not PAGES, reason="no built book: run make book"),
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: run make check")


@pytest.fixture(scope="module")
def address():
    """The site under a sub-path, as a project's page has it."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(SITE.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{SITE.name}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        switches = ["--no-sandbox", "--disable-gpu"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=switches)


@pytest.fixture(params=LOOKS)
def look(request, browser, address):
    """A page in one look, and what went wrong on it."""
    scheme, width = LOOKS[request.param]
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page, wrong = context.new_page(), []
    ours = (address, "data:", "blob:")
    page.on("console", lambda x: wrong.append(f"console: {x.text}") if x.type == "error" else None)
    page.on("pageerror", lambda x: wrong.append(f"script: {x}"))
    page.on("requestfailed", lambda x: wrong.append(f"failed: {x.url}"))
    page.on("response", lambda x: wrong.append(f"{x.status}: {x.url}") if x.status >= 400 else None)
    page.on("request", lambda x: x.url.startswith(ours) or wrong.append(f"another host: {x.url}"))
    yield page, wrong
    context.close()


@pytest.fixture(scope="module")
def axe():
    try:
        return npm_files(AXE)[0].read_text(encoding="utf-8")
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture
def live(look, address):
    page, wrong = look
    page.goto(f"{address}book/live.html")
    if page.locator("[data-ready]").count() == 0:
        pytest.skip("this build has no live page: the npm registry was not reached")
    return page, wrong


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_whole(look, address, name):
    page, wrong = look
    page.goto(address + name, wait_until="networkidle")
    assert wrong == []
    assert page.evaluate(WIDER) == 0, "the page scrolls sideways"
    assert page.evaluate(WITHOUT_IMAGE) == []


@pytest.mark.parametrize("name", [name for name in PAGES if name != "index.html"])  # it leads on
def test_a_page_is_accessible(look, address, name, axe):
    page, _ = look
    page.goto(address + name)
    page.evaluate(FADED)
    page.evaluate(axe)
    assert page.evaluate(SERIOUS) == []


def test_the_live_page_answers_as_python_does(live, axe):
    page, wrong = live
    about = json.loads((SITE / "_static" / "live" / "data" / "about.json").read_text())
    for number, example in enumerate(about["examples"][:2]):
        page.locator("[data-query]").nth(number).click()
        page.wait_for_function(ANSWERED, arg=example["query"], timeout=120_000)
        rows = page.eval_on_selector_all(".rdl-results > li", ROWS)
        ranked = sorted(example["candidates"], key=lambda candidate: candidate["student_rank"])
        assert [name for name, _ in rows] == [x["doc_id"] for x in ranked]
        assert [score for _, score in rows] == pytest.approx([x["student"] for x in ranked], abs=1e-3)
    assert page.evaluate(WIDER) == 0
    page.evaluate(axe)
    assert page.evaluate(SERIOUS) == []
    assert wrong == []


def test_what_is_typed_is_text(live):
    page, _ = live
    query = "<img src=x onerror=alert(1)> sort an array"
    page.fill("#rdl-query", query)
    page.keyboard.press("Enter")
    page.wait_for_function(ANSWERED, arg=query, timeout=120_000)
    assert page.locator(".rdl-asked img").count() == 0
    assert page.locator(".rdl-results > li").count() == 20


def test_without_webassembly_the_example_stands(look, address):
    page, wrong = look
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(f"{address}book/live.html")
    assert page.locator(".rdl-results > li").count() == 20
    assert not page.locator(".rdl-ask").is_visible()
    assert wrong == []


def test_the_site_is_small():
    assert sum(x.stat().st_size for x in SITE.rglob("*") if x.is_file()) < 60_000_000
