"""The page in a real browser: headless Chromium."""

import shutil

import pytest

pytest.importorskip('starlette')
sync_api = pytest.importorskip('playwright.sync_api')

from tests.helpers import servers  # noqa: E402

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason='no Chromium is installed (apt install chromium)'),
]


def bm25(requests):
    return [list(reversed(servers.found(request.query, request.k))) for request in requests]


@pytest.fixture(scope='module')
def address():
    with servers.running(servers.made(others={'bm25': bm25})) as address:
        yield address


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={'width': 1280, 'height': 900})
    page = context.new_page()
    page.complaints = []
    page.on('pageerror', lambda error: page.complaints.append(str(error)))
    page.goto(address)
    yield page
    context.close()


def ask(page, question):
    page.get_by_role('searchbox', name='Question').fill(question)
    page.keyboard.press('Enter')
    page.locator('#results:not([aria-busy])').wait_for()


def test_systems_answer_side_by_side(page):
    ask(page, 'a red cat')
    assert page.title() == 'a red cat – jdkd search'
    student, bm25 = (page.get_by_role('region', name=name) for name in ('student', 'bm25'))
    box = student.bounding_box()
    assert box['x'] + box['width'] <= bm25.bounding_box()['x']
    for region, first in ((student, '1. p0'), (bm25, '1. Title 2')):
        assert region.get_by_role('article').count() == 3
        assert 'ms' in region.locator('.time').inner_text()
        assert region.get_by_role('heading', level=3).first.inner_text() == first
    top = student.get_by_role('article').first
    assert top.locator('mark').all_inner_texts() == ['red', 'cats', 'red', 'cat']
    assert top.locator('.score').text_content() == 'score 1.000'
    assert top.locator('.ranks').inner_text() == 'bm25: 3'
    assert page.get_by_role('status').inner_text().startswith('student: 3 passages in ')
    assert page.complaints == []


def test_a_script_in_a_passage_is_text(page):
    ask(page, 'cat')
    text = page.get_by_role('region', name='student').get_by_role('article').nth(1).locator('.text')
    assert text.text_content() == servers.SCRIPT
    assert page.locator('#results script, #results img').count() == 0
    assert page.title() == 'cat – jdkd search'


def test_code_that_would_get_into_the_page_does_not_run(page):
    refused = page.evaluate(
        """() => new Promise((resolve) => {
          addEventListener('securitypolicyviolation', (event) => resolve(event.violatedDirective));
          const script = document.createElement('script');
          script.textContent = 'document.title = "broken"';
          document.body.append(script);
        })"""
    )
    assert refused == 'script-src-elem' and page.title() != 'broken'


def test_long_passages_open_at_the_words_found(page):
    ask(page, 'a red cat')
    item = page.get_by_role('region', name='student').get_by_role('article').nth(2)
    assert item.locator('mark').all_inner_texts() == ['red', 'cat']
    assert item.locator('.text').text_content().startswith('… ')
    button = item.get_by_role('button', name='Show all')
    button.focus()
    page.keyboard.press('Enter')
    assert item.locator('.text').text_content() == servers.LONG
    assert item.get_by_role('button', name='Show less').get_attribute('aria-expanded') == 'true'


def test_nothing_found_and_errors_are_told(page):
    ask(page, 'nothing')
    assert page.get_by_text('No passages.').count() == 2
    ask(page, 'broken')
    alerts = page.get_by_role('alert').all_inner_texts()
    assert alerts == 2 * ['Error: the server failed; its log says why.']
    assert page.get_by_role('status').inner_text() == 'No answer.'
    ask(page, 'cat')
    assert page.get_by_role('alert').count() == 0 and page.get_by_role('article').count() == 6


def test_addresses_hold_the_question(page, address):
    page.goto(f'{address}/?q=red+%26+blue')
    page.get_by_role('article').first.wait_for()
    assert page.get_by_role('searchbox').input_value() == 'red & blue'
    ask(page, 'second')
    assert page.url == f'{address}/?q=second'
    page.go_back()
    sync_api.expect(page.get_by_role('searchbox')).to_have_value('red & blue')
    sync_api.expect(page).to_have_title('red & blue – jdkd search')


def open_before_health_answers(page, address):
    """Opens the page anew; what it returns lets /health answer."""
    held = []
    page.route('**/health', lambda route: held.append(route))
    page.goto(address)
    while not held:
        page.wait_for_timeout(10)
    return held.pop().continue_


def test_a_question_typed_before_the_page_knows_its_systems_is_kept(page, address):
    let_health_answer = open_before_health_answers(page, address)
    box = page.get_by_role('searchbox', name='Question')
    box.fill('typed at once')
    let_health_answer()
    page.get_by_text('toy, 3 passages, 2 dimensions').wait_for()
    sync_api.expect(box).to_have_value('typed at once')


def test_a_search_waits_until_the_page_knows_its_systems(page, address):
    let_health_answer = open_before_health_answers(page, address)
    page.get_by_role('searchbox', name='Question').fill('cat')
    page.keyboard.press('Enter')
    assert page.get_by_role('status').inner_text() == 'Searching …'
    assert page.get_by_role('region').count() == 0
    let_health_answer()
    page.locator('#results:not([aria-busy])').wait_for()
    assert page.get_by_role('region').count() == 2


def test_a_keyboard_is_enough(page):
    assert page.evaluate('document.activeElement.id') == 'q'
    page.keyboard.type('cat')
    page.keyboard.press('Enter')
    page.get_by_role('article').first.wait_for()
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.textContent') == 'Search'
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.textContent') == 'Show all'
    page.evaluate('document.querySelector(".skip").focus()')
    page.keyboard.press('Enter')
    assert page.evaluate('document.activeElement.id') == 'results'


def test_it_fits_a_phone(page):
    page.set_viewport_size({'width': 390, 'height': 844})
    ask(page, 'w' * 300)
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    student, bm25 = (page.get_by_role('region', name=name) for name in ('student', 'bm25'))
    assert (
        student.bounding_box()['y'] + student.bounding_box()['height'] <= bm25.bounding_box()['y']
    )
    page.get_by_role('navigation').get_by_role('link', name='bm25').click()
    assert page.url.endswith('#system-1')
