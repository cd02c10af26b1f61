"""The page in a real Chromium: what people do on it, hostile text, no request elsewhere, no wider than a phone."""

import json

import pytest

from tests.browser import chromium

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> \u202eevil\u0000"


@pytest.fixture
def opened(served):
    """A tab with the page of the server over the tiny model."""
    address, _, _ = served
    with chromium() as page:

        def show(width=1280, dark=False, hash_=""):
            page.send(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
            )
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            page.send("Emulation.setEmulatedMedia", media="", features=scheme)
            page.send("Page.navigate", url="about:blank")
            page.send("Page.navigate", url=f"{address}/{hash_}")
            page.wait("document.readyState === 'complete' && document.querySelectorAll('fieldset').length > 0")
            return page

        yield show, address


def answer(page, prompt="how do i kill a python process"):
    page.run(
        f"document.getElementById('prompt').value = {json.dumps(prompt)}; document.getElementById('tokens').value = 8"
    )
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait("!document.getElementById('send').disabled && document.querySelectorAll('.badge').length > 1", 30)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_two_arms_answer_side_by_side(opened, width, dark):
    show, address = opened
    page = show(width, dark)
    answer(page)
    assert page.run("[...document.querySelectorAll('.reply')].map((one) => one.textContent.length > 0)") == [True, True]
    assert page.run("document.querySelectorAll('.reply span[style]').length") > 4
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelectorAll('canvas').length") == 2
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith((address, "data:", "about:"))] == []


@pytest.mark.browser
def test_an_answer_is_walked_through_by_keyboard(opened):
    show, _ = opened
    page = show()
    answer(page)
    page.run("document.querySelector('.reply').focus()")
    page.key("ArrowRight", 39)
    page.key("ArrowRight", 39)
    assert page.run("document.querySelectorAll('.reply span.here').length") == 1
    assert page.run("document.querySelector('#one h3').textContent").startswith("Projections of")
    assert page.run("document.querySelectorAll('#next .bars b').length") == 6
    assert (
        page.run(
            "document.querySelectorAll('#ask input:not([tabindex=\"-1\"]), #ask select, #ask button, #ask textarea').length"
        )
        > 12
    )


@pytest.mark.browser
def test_text_never_becomes_markup(opened):
    show, _ = opened
    link = {
        "columns": [{"arm": "<b>x</b>"}, {"arm": "baseline", "layer": "<script>"}],
        "prompt": HOSTILE,
        "colour": "<i>",
    }
    page = show(hash_="#" + __import__("urllib.parse").parse.quote(json.dumps(link)))
    assert page.run("document.getElementById('prompt').value") == HOSTILE
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait("!document.getElementById('send').disabled && document.querySelectorAll('.badge').length > 0", 30)
    assert page.run("document.querySelectorAll('#answers img, #answers script, #answers b').length") == 0
    assert page.run("document.title") == "Steering, live"
    assert "\\u202e" in page.run("document.querySelector('.said').textContent")


@pytest.mark.browser
def test_a_link_holds_the_setting(opened):
    show, _ = opened
    page = show()
    page.run("document.getElementById('add').click()")
    page.run("""(() => { const select = document.querySelectorAll('fieldset')[2].querySelector('select'); select.value = 'fixed:strength=-5';
             select.dispatchEvent(new Event('change')); const slider = document.querySelectorAll('fieldset')[2].querySelector('input[type=range]');
             slider.value = 2.5; slider.dispatchEvent(new Event('input')); })()""")
    hash_ = page.run("location.hash")
    told = page.run("JSON.parse(decodeURIComponent(location.hash.slice(1))).columns")
    assert told[2] == {"arm": "fixed:strength=-5", "strength": 2.5}
    page = show(hash_=hash_)
    assert page.run("document.querySelectorAll('fieldset')[2].querySelector('output').textContent") == "2.50"


@pytest.mark.browser
def test_saved_prompts_are_rows_that_data_takes(opened, tmp_path):
    from data import load_all

    show, _ = opened
    page = show()
    page.run("window.kept = null; URL.createObjectURL = (blob) => { window.kept = blob; return 'data:,'; }")
    answer(page, "tell me")
    answer(page, "write a poem")
    page.run("document.getElementById('save').click()")
    text = page.run("window.kept.text()")
    path = tmp_path / "live.jsonl"
    path.write_text(text)
    rows = load_all([str(path)])
    assert rows.height == 3  # the first prompt, and the second behind each arm's answer to it
    assert json.loads(text.splitlines()[0])["messages"] == [{"role": "user", "content": "tell me"}]
