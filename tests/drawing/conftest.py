"""Pages in a browser as users open them: from a file, without a network."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which is not installed here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a page; at the end nothing may have gone wrong in it, or left the machine."""
    wrong, contexts = [], []

    def opened(file, **options):
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1000, "height": 700}} | options)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked(request.url))
        page.goto(file.as_uri())
        return page

    def asked(url):
        if not url.startswith(("data:", "file:")) or url.endswith("x"):
            wrong.append(url)

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
