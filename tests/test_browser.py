"""The book and the pages as a person meets them: JupyterLab driven in a browser, the pages under reports/ and of the book read by axe-core

`make test-browser` runs this; the other test runs leave it out. It needs Chromium with its driver (Debian and Ubuntu: `apt install chromium chromium-driver`), the extra
`browser` (selenium) and axe-core; what is missing is named, and its tests are skipped. By hand:

    pip install -e '.[dev,browser]' && npm install --prefix .venv/axe axe-core@4
    NOISYNB_BROWSER=1 pytest -rs tests/test_browser.py

NOISYNB_AXE names another axe.min.js, NOISYNB_SCREENSHOTS a folder for pictures of everything that was looked at.
"""
import base64, json, os, re, secrets, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

if os.environ.get('NOISYNB_BROWSER', '') in ('', '0'): pytest.skip('runs for minutes in a browser: make test-browser', allow_module_level=True)
webdriver = pytest.importorskip('selenium.webdriver', reason="no selenium: pip install -e '.[browser]'")
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
driver = shutil.which('chromedriver')
if not (chromium and driver): pytest.skip('no Chromium with its driver: apt install chromium chromium-driver', allow_module_level=True)

root = Path(__file__).parent.parent
axe = Path(os.environ.get('NOISYNB_AXE') or Path(sys.prefix)/'axe/node_modules/axe-core/axe.min.js')
needs_axe = pytest.mark.skipif(not axe.exists(), reason=f'no {axe.name}: npm install --prefix .venv/axe axe-core@4')
shots = os.environ.get('NOISYNB_SCREENSHOTS')
wraps = Path(sys.prefix, 'share/jupyter/lab/settings/overrides.d/noisynb.json').exists()   # `make` lets JupyterLab break lines of code; without it they scroll
patience = 600   # seconds a step may take on a busy machine
schemes = 'light', 'dark'


# the browser

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for a in ('--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-background-networking --disable-component-update '
              '--disable-sync --window-size=1280,1000').split(): options.add_argument(a)
    options.add_argument(f'--user-data-dir={tmp_path_factory.mktemp("profile")}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_page_load_timeout(patience); chrome.set_script_timeout(patience)
    yield chrome
    chrome.quit()

def size(chrome, width, height=1000): chrome.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=height, deviceScaleFactor=1, mobile=False))

def prefer(chrome, scheme): chrome.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=scheme)]))

def wait(chrome, what, ready, seconds=patience):
    "What `ready()` returns, once it is true"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := ready(): return found
        except StaleElementReferenceException: pass   # drawn again in the meantime
        time.sleep(.3)
    picture(chrome, 'timeout')
    pytest.fail(f'{what}: not within {seconds} s')

def picture(chrome, name, whole=False):
    "A screenshot, where they are asked for"
    if not shots: return
    Path(shots).mkdir(parents=True, exist_ok=True)
    shot = chrome.execute_cdp_cmd('Page.captureScreenshot', dict(format='png', captureBeyondViewport=whole))
    (Path(shots)/f'{name}.png').write_bytes(base64.b64decode(shot['data']))

def violations(chrome, within='document', **options):
    "What axe-core finds, a line each"
    if not chrome.execute_script('return Boolean(window.axe)'): chrome.execute_script(axe.read_text(encoding='utf-8') + '; window.axe = axe')
    found = chrome.execute_async_script('const [options, done] = arguments; axe.run(' + within + ', {resultTypes: ["violations"], ...options}).then(r => done(r.violations), e => done(String(e)))', options)
    assert not isinstance(found, str), found
    return [f'{v["id"]}: {node["target"]} {node["html"][:120]} ({(node["any"] or node["all"] or node["none"])[0]["message"]})' for v in found for node in v['nodes'][:5]]


# the pages under reports/

def kinds():
    "A page of every kind: the first of each method and of the comparisons, every audit, the leaderboard"
    first = {}
    for page in sorted((root/'reports').rglob('*.html')):
        name = page.relative_to(root/'reports')
        first.setdefault(name if name.parts[0] == 'audit' else re.match(r'compare|[^-]*', name.stem)[0], page)
    return first.values()

fits = 'return document.documentElement.scrollWidth - document.documentElement.clientWidth'
cut = 'return [...document.querySelectorAll("caption span")].filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth).map(e => e.textContent)'

def check_page(chrome, page, scheme, name, weight=300_000):
    "No violation, no picture without words, nothing wider than the window, nothing in the console"
    assert page.stat().st_size < weight
    prefer(chrome, scheme); size(chrome, 1280)
    chrome.get_log('browser')
    chrome.get(page.as_uri())
    assert chrome.execute_script('return matchMedia("(prefers-color-scheme: dark)").matches') == (scheme == 'dark')
    assert chrome.execute_script('return [...document.images].filter(i => !i.alt.trim() || !i.naturalWidth).map(i => i.outerHTML.slice(-200))') == []
    for width in 1280, 400:
        size(chrome, width)
        assert chrome.execute_script(fits) <= 0, f'scrolls sideways in a window of {width} pixels'
        assert chrome.execute_script(cut) == [], f'captions that end outside a window of {width} pixels'
        picture(chrome, f'{name}-{scheme}-{width}', whole=True)
    size(chrome, 1280)
    assert violations(chrome) == []
    assert [line['message'] for line in chrome.get_log('browser') if line['level'] in ('WARNING', 'SEVERE')] == []

@needs_axe
@pytest.mark.parametrize('scheme', schemes)
@pytest.mark.parametrize('page', kinds(), ids=lambda p: p.relative_to(root/'reports').as_posix())
def test_a_page_is_for_everyone(browser, page, scheme): check_page(browser, page, scheme, '-'.join(page.relative_to(root/'reports').parts)[:-5])

@needs_axe
def test_a_comparison_is_for_everyone(browser, tmp_path):
    "The page that `noisynb compare` makes today of a folder of records"
    folder = next(f for f in sorted((root/'reports').rglob('*/')) if len({p.name.split('-')[0] for p in f.glob('*-seed*.json')}) > 2)
    subprocess.run([sys.executable, '-m', 'noisynb', 'compare', folder.relative_to(root), '-o', tmp_path/'compare.html'], cwd=root, check=True, capture_output=True, timeout=patience)
    for scheme in schemes: check_page(browser, tmp_path/'compare.html', scheme, 'compare-of-today')

@pytest.fixture(scope='module')
def printed(tmp_path_factory):
    from noisynb.reports.book import book
    return book(tmp_path_factory.mktemp('printed')/'_book', root).parent

@needs_axe
@pytest.mark.parametrize('scheme', schemes)
@pytest.mark.parametrize('page', ['index', 'tutorial', 'which_method', 'howto_add_a_method', '14_methods.10_wann', '14_methods.20_dividemix', 'api', 'api.noisynb.core'])
def test_a_page_of_the_book_is_for_everyone(browser, printed, page, scheme): check_page(browser, printed/f'{page}.html', scheme, f'book-{page}', weight=500_000)

@needs_axe
def test_axe_finds_what_is_wrong(browser, tmp_path):
    "A page with known faults, so that silence means something"
    (tmp_path/'bad.html').write_text('<!DOCTYPE html><html><title>x</title><main><h1>x</h1><img src="data:,"><p style="color:#ccc;background:#fff">pale</p></main>')
    browser.get((tmp_path/'bad.html').as_uri())
    assert {v.split(':')[0] for v in violations(browser)} >= {'image-alt', 'color-contrast', 'html-has-lang'}

@pytest.mark.skipif(not (root/'reports/index.html').exists(), reason='no leaderboard')
def test_the_leaderboard_sorts_and_filters(browser):
    size(browser, 1280); prefer(browser, 'light')
    browser.get((root/'reports/index.html').as_uri())
    names = lambda: browser.execute_script('return [...document.querySelectorAll("table.sort tbody tr")].filter(r => r.checkVisibility()).map(r => r.cells[0].firstChild.textContent)')
    before, table = names(), browser.find_elements(By.CSS_SELECTOR, 'table.sort')[-1]
    column = next(i for i, th in enumerate(table.find_elements(By.CSS_SELECTOR, 'thead th')) if th.text.startswith('AUROC'))
    values = lambda: [float(v) for v in browser.execute_script('return [...arguments[0].tBodies[0].rows].map(r => r.cells[arguments[1]].dataset.v).filter(v => v != "")', table, column)]
    button = table.find_elements(By.CSS_SELECTOR, 'thead th')[column].find_element(By.TAG_NAME, 'button')
    assert len(set(values())) > 2
    for order in 'descending', 'ascending':
        button.send_keys(Keys.ENTER)   # by keyboard, as someone without a mouse
        assert values() == sorted(values(), reverse=order == 'descending') and table.find_elements(By.CSS_SELECTOR, 'thead th')[column].get_attribute('aria-sort') == order
    assert 'Sorted by' in browser.find_element(By.ID, 'said').text
    wanted = browser.find_element(By.ID, 'filter')
    wanted.send_keys(before[0][:3].lower())
    assert names() and all(before[0][:3].lower() in n.lower() for n in names()) and len(names()) < len(before)
    for _ in range(3): wanted.send_keys(Keys.BACKSPACE)
    assert sorted(names()) == sorted(before)


# JupyterLab

class Lab:
    "JupyterLab on a copy of the notebooks, and the person in front of it"
    def __init__(self, chrome, folder, address, token): self.chrome, self.folder, self.address, self.token = chrome, folder, address, token
    def js(self, code, *args): return self.chrome.execute_script(code, *args)
    def command(self, name, args=None): return self.chrome.execute_async_script('const [n, a, done] = arguments; jupyterapp.commands.execute(n, a).then(() => done(null), e => done(String(e)))', name, args or {})
    def find(self, css): return self.chrome.find_elements(By.CSS_SELECTOR, css)

    def click(self, css, start=''):
        "Click the first such element that is shown, if there is one"
        there = [e for e in self.find(css) if e.is_displayed() and e.text.startswith(start)][:1]
        for e in there: e.click()
        return there

    def open(self, notebook):
        "Open one notebook, as it lies in the repository"
        size(self.chrome, 1280)
        self.chrome.get(f'{self.address}/lab/tree/{notebook}?token={self.token}&reset')
        wait(self.chrome, 'the notebook', lambda: self.find('.jp-Notebook .jp-Cell') and self.js('return Boolean(window.jupyterapp)'))
        wait(self.chrome, 'an idle kernel', lambda: self.find('.jp-Notebook-ExecutionIndicator[data-status=idle]'))
        self.name = notebook
        return self

    def menu(self, menu, command):
        "Choose a command from the menu bar"
        wait(self.chrome, f'menu {menu}', lambda: self.click('.lm-MenuBar-itemLabel', menu))
        wait(self.chrome, command, lambda: self.click(f'.lm-Menu-item[data-command="{command}"]'))

    def run_all(self):
        "Run > Run All Cells, and wait: every code cell is numbered and none is waiting"
        self.menu('Run', 'runmenu:run-all')
        prompts = lambda: self.js('return [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")].map(e => e.textContent.trim())')
        wait(self.chrome, 'the first cell', lambda: any('[ ]' not in p for p in prompts()))
        wait(self.chrome, 'all cells', lambda: not any('*' in p for p in prompts()))
        wait(self.chrome, 'an idle kernel', lambda: self.find('.jp-Notebook-ExecutionIndicator[data-status=idle]'))
        problems = self.js('return [...document.querySelectorAll(".jp-OutputArea-output[data-mime-type=\'application/vnd.jupyter.error\'], .jp-OutputArea-output[data-mime-type=\'application/vnd.jupyter.stderr\']")].map(e => e.innerText)')
        assert problems == []
        assert [p for p in prompts() if not re.search(r'\[\d+\]', p)] == []

    def saved(self):
        "Save, and read the file back"
        assert self.command('docmanager:save') is None
        return json.loads((self.folder/self.name).read_text(encoding='utf-8'))

    def theme(self, scheme):
        assert self.command('apputils:change-theme', dict(theme=f'JupyterLab {scheme.title()}')) is None
        wait(self.chrome, f'the {scheme} theme', lambda: self.js('return document.body.dataset.jpThemeLight') == str(scheme == 'light').lower())
        time.sleep(1)

    def whole(self, name):
        "One picture of the whole notebook"
        if not shots: return
        size(self.chrome, 1280, min(16000, 250 + int(self.js('return Math.max(...[...document.querySelectorAll(".jp-WindowedPanel-outer")].map(e => e.scrollHeight))'))))
        time.sleep(1)
        picture(self.chrome, name)
        size(self.chrome, 1280)
        time.sleep(.5)

    def faults(self, code=False):
        "What would bother a reader, a line each; empty is good. With `code`, lines of code too wide for their cell count"
        return self.js('''
const bad = [], short = e => e.outerHTML.slice(0, 160), text = e => (e.innerText || '').trim().slice(0, 80);
for (const e of document.querySelectorAll('.jp-Notebook .jp-OutputArea, .jp-Notebook .jp-OutputArea *, .jp-Notebook .jp-RenderedMarkdown *')) {
  const s = getComputedStyle(e);
  if (!e.clientWidth || s.display == 'inline' || e.closest('.cm-editor, mjx-container, .lm-mod-hidden')) continue;
  if (/auto|scroll/.test(s.overflowX) && e.scrollWidth > e.clientWidth + 1) bad.push(`scrolls sideways by ${e.scrollWidth - e.clientWidth}: ${e.className} ${text(e)}`);
  if (/auto|scroll/.test(s.overflowY) && e.scrollHeight > e.clientHeight + 1) bad.push(`scrolls by ${e.scrollHeight - e.clientHeight}: ${e.className} ${text(e)}`);
}
for (const e of document.querySelectorAll('.jp-mod-outputsScrolled')) bad.push('an output that was made to scroll: ' + text(e));
for (const e of document.querySelectorAll('.jp-Notebook table')) {
  const room = e.closest('.jp-OutputArea-output, .jp-RenderedMarkdown').getBoundingClientRect(), box = e.getBoundingClientRect();
  if (box.right > room.right + 1 || box.left < room.left - 1) bad.push(`a table wider than its place by ${Math.round(box.right - room.right)}: ${text(e)}`);
  if (parseFloat(getComputedStyle(e).fontSize) < 11) bad.push('a table in small print: ' + text(e));
}
if (arguments[0]) for (const e of document.querySelectorAll('.jp-Notebook .jp-CodeCell .cm-scroller')) if (e.scrollWidth > e.clientWidth + 1) bad.push(`code that scrolls by ${e.scrollWidth - e.clientWidth}: ${text(e)}`);
for (const e of document.querySelectorAll('.jp-Notebook .jp-Cell img')) {
  if (!e.naturalWidth) bad.push('a picture that does not load: ' + short(e));
  if (!e.closest('.jp-RenderedImage') && !e.alt.trim()) bad.push('a picture without words: ' + short(e));
  const room = e.closest('.jp-OutputArea-output, .jp-RenderedMarkdown').getBoundingClientRect();
  if (e.getBoundingClientRect().right > room.right + 1) bad.push('a picture wider than its place: ' + short(e));
}
for (const e of document.querySelectorAll('.jp-Notebook mjx-merror, .jp-Notebook .MathJax_Error')) bad.push('a formula that does not parse: ' + text(e));
for (const e of document.querySelectorAll('.jp-OutputArea-output[data-mime-type*=widget], .jp-OutputArea-output progress')) bad.push('a progress bar that stayed: ' + text(e));
return bad;''', code)

@pytest.fixture(scope='module')
def lab(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp('book')
    for part in 'nbs', 'reports': shutil.copytree(root/part, folder/part, ignore=shutil.ignore_patterns('.ipynb_checkpoints', '*.html'))
    own = {f'JUPYTER_{k}_DIR': folder/k.lower() for k in ('CONFIG', 'DATA', 'RUNTIME')} | {'IPYTHONDIR': folder/'ipython', 'NOISYNB_CACHE': folder/'store'}
    own |= {f'JUPYTERLAB_{k}_DIR': folder/k.lower() for k in ('SETTINGS', 'WORKSPACES')}
    settings = {'notebook-extension/tracker': dict(windowingMode='none', scrollPastEnd=False),   # all cells are there to be looked at, not those in view alone
                'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False)}
    for name, chosen in settings.items():
        path = folder/f'settings/@jupyterlab/{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(chosen))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    token, address = secrets.token_hex(16), f'http://127.0.0.1:{port}'
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'JUPYTER_PATH', 'JUPYTER_CONFIG_PATH')} | {k: str(v) for k, v in own.items()}
    env |= dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')])))
    with open(folder/'lab.log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', f'--IdentityProvider.token={token}',
                                   '--ServerApp.port_retries=0', '--ServerApp.root_dir=nbs', '--LabApp.expose_app_in_browser=True'], cwd=folder, env=env, stdout=log, stderr=log)
    def up():
        assert server.poll() is None, (folder/'lab.log').read_text()[-2000:]
        try: return urllib.request.urlopen(f'{address}/api/status?token={token}', timeout=5).status == 200
        except OSError: return False
    try:
        wait(browser, 'the server', up)
        yield Lab(browser, folder/'nbs', address, token)
    finally:
        browser.get('about:blank')
        try:   # the server ends its kernels
            urllib.request.urlopen(urllib.request.Request(f'{address}/api/shutdown?token={token}', method='POST'), timeout=60).close()
            server.wait(60)
        except (OSError, subprocess.TimeoutExpired): server.kill()

def look(lab, name, code=wraps):
    "The standards of a reader, in both themes"
    for scheme in schemes:
        lab.theme(scheme)
        lab.whole(f'lab-{name}-{scheme}')
        assert lab.faults(code) == [], scheme
        if axe.exists() and lab.find('.jp-Notebook .jp-OutputArea-output'):   # what we put there; the rest is JupyterLab's
            assert violations(lab.chrome, '{include: [[".jp-Notebook .jp-OutputArea-output"]]}', runOnly=['color-contrast', 'svg-img-alt', 'td-headers-attr', 'scope-attr-valid', 'empty-table-header', 'link-name']) == [], scheme

def pictures(notebook): return [o for c in notebook['cells'] for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]

def test_run_method_with_another_method(lab):
    from noisynb.record import Result
    lab.open('run_method.ipynb')
    wait(lab.chrome, 'the parameters', lambda: lab.click('.jp-Notebook .cm-line', 'method:'))
    webdriver.ActionChains(lab.chrome).send_keys(Keys.HOME).key_down(Keys.SHIFT).send_keys(Keys.END).key_up(Keys.SHIFT).send_keys("method: str = 'knn'").perform()
    picture(lab.chrome, 'lab-run_method-typed')
    lab.run_all()
    after = lab.saved()
    parameters = next(c for c in after['cells'] if 'parameters' in c['metadata'].get('tags', []))
    assert ''.join(parameters['source']).splitlines()[0] == "method: str = 'knn'"
    result = Result(next(o['data'][Result.mime] for c in reversed(after['cells']) for o in c.get('outputs', []) if Result.mime in o.get('data', {}))).check()
    assert (result['method'], result['dataset']) == ('knn', 'digits') and .5 < result['test_accuracy'] < 1
    text = lab.js('return document.querySelector(".jp-Notebook").innerText')
    assert 'k-NN on digits' in text and f'{100*result["test_accuracy"]:.1f}' in text
    assert len(lab.find('.jp-OutputArea-output .jp-RenderedImage img, .jp-OutputArea-output.jp-RenderedImage img')) == len(pictures(after)) >= 2
    assert len(lab.find('table.matrix tbody tr')) == 10   # what the labels became
    tables = [t for t in lab.find('.jp-OutputArea-output table') if t.is_displayed()]
    assert len(tables) >= 4 and 'Test accuracy' in text
    assert_words(after)
    look(lab, 'run_method', code=True)
    if axe.exists():
        from noisynb.reports.printing import write_page   # the page that today's code makes of it
        page = write_page(lab.folder/lab.name)
        for scheme in schemes: check_page(lab.chrome, page, scheme, 'page-of-today')

def assert_words(notebook):
    "JupyterLab shows no alternative text of image/png (jupyter/enhancement-proposals#120); the words have to be there for readers that do"
    assert [o['data']['text/plain'] for o in pictures(notebook) if not (o['metadata'].get('image/png') or {}).get('alt')] == []

@pytest.mark.parametrize('chapter', ['14_methods/10_wann', '14_methods/21_smr'])
def test_a_method_chapter_runs_from_top_to_bottom(lab, chapter):
    lab.open(f'{chapter}.ipynb')
    lab.theme('light')
    lab.whole(f'lab-{Path(chapter).name}-as-it-lies')
    lab.run_all()
    look(lab, Path(chapter).name)
    assert_words(lab.saved())
