"What nbdev_test cannot see: the repository keeps its promises"
import ast, json, os, re, shutil, socket, subprocess, sys, tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from noisynb.audit import Record
from noisynb.cli import declared, readme
from noisynb.core import Result
from noisynb.leaderboard import leaderboard

root = Path(__file__).parent.parent
here = lambda p: p.relative_to(root).as_posix()
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not re.search(r'(^|/)[_.]', here(p)))
reports = sorted(p for p in (root/'reports').rglob('*.ipynb') if not re.search(r'(^|/)\.', here(p)))
modules = [p for p in sorted((root/'noisynb').rglob('*.py')) if p.name not in ('__init__.py', '_modidx.py')]
project = tomllib.loads((root/'pyproject.toml').read_text())
siblings = {('methods.smr', 'methods.dividemix')} # a paper that builds on another
parameters = 'method dataset data_dir embedding noise_type noise_rate seed n_train imbalance epochs time_budget device options'.split()


def cells(path): return json.loads(path.read_text())['cells']

def files():
    "What is or would be committed"
    try: out = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as e:
        if (root/'.git').exists(): raise AssertionError(f'git cannot list the files: {getattr(e, "stderr", e)}') from e
        pytest.skip('not a git checkout')
    return [root/f for f in out if (root/f).is_file()]

def name(mod): return '.'.join(mod.relative_to(root/'noisynb').with_suffix('').parts)

def notebook(mod):
    "The notebook that `mod` was exported from"
    return Path(os.path.normpath(mod.parent/re.search(r'File to edit: (.+?\.ipynb)', mod.read_text())[1]))

def imports(mod):
    "Modules that `mod` imports anywhere, those of this package as noisynb.x"
    package = ['noisynb', *mod.relative_to(root/'noisynb').parts[:-1]]
    for n in ast.walk(ast.parse(mod.read_text())):
        if isinstance(n, ast.Import): yield from (a.name for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            base = '.'.join([*package[:len(package)+1-n.level], *filter(None, [n.module])]) if n.level else n.module
            yield from (f'{base}.{a.name}' for a in n.names) if base in ('noisynb', 'noisynb.methods') else [base]


# notebooks and modules

@pytest.fixture(scope='session')
def fresh(tmp_path_factory):
    "A copy of the notebooks, exported from nothing and cleaned"
    copy = tmp_path_factory.mktemp('fresh')
    for f in 'settings.ini', 'pyproject.toml', 'README.md': shutil.copy(root/f, copy)
    shutil.copytree(root/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for command in 'nbdev_export', 'nbdev_clean': subprocess.run([Path(sys.executable).parent/command], cwd=copy, check=True, capture_output=True)
    return copy

def test_notebooks_are_clean(fresh):
    assert [here(nb) for nb in notebooks if nb.read_text() != (fresh/here(nb)).read_text()] == []

def test_the_library_is_what_the_notebooks_export(fresh):
    ours, theirs = ({p.relative_to(r).as_posix(): p.read_text() for p in (r/'noisynb').rglob('*.py')} for r in (root, fresh))
    assert sorted(ours) == sorted(theirs), 'a module without notebook, or not exported'
    assert [f for f in ours if ours[f] != theirs[f]] == []

def test_no_two_notebooks_write_one_module():
    exports = [m[1] for nb in notebooks for c in cells(nb) if (m := re.match(r'#\|\s*default_exp\s+(\S+)', ''.join(c['source'])))]
    assert len(exports) == len(set(exports)) and len([e for e in exports if not e.endswith('__init__')]) == len(modules)

@pytest.mark.parametrize('mod', modules, ids=name)
def test_notebook_and_module_have_one_name(mod):
    assert re.fullmatch(rf'\d\d_{re.escape(name(mod))}', notebook(mod).stem) and notebook(mod).exists()

@pytest.mark.parametrize('mod', modules, ids=name)
def test_imports_point_down(mod):
    number = {f'noisynb.{name(m)}': int(notebook(m).name[:2]) for m in modules}
    mine = number[f'noisynb.{name(mod)}']
    for imported in imports(mod):
        assert imported.split('.')[0] not in ('fastcore', 'nbdev', 'execnb'), 'users of the library do not have it'
        if imported not in number: continue
        assert number[imported] < mine, f'{name(mod)} imports {imported}, which is not below it'
        pair = name(mod), imported.removeprefix('noisynb.')
        if mine//10 == number[imported]//10 == 2 and pair[1] not in ('methods.base', 'methods.images'): assert pair in siblings, 'a method imports another that its paper does not build on'

@pytest.mark.parametrize('nb', notebooks + reports, ids=here)
def test_no_output_is_an_error(nb):
    assert [o['ename'] for c in cells(nb) for o in c.get('outputs', []) if o['output_type'] == 'error'] == []

def test_run_method_declares_its_parameters():
    known = declared(root/'nbs/run_method.ipynb')
    assert list(known) == parameters # a type that papermill can't read drops the parameter silently
    assert all(p['inferred_type_name'] != 'None' and p['help'] for p in known.values())

def test_the_readme_is_the_index(monkeypatch):
    monkeypatch.chdir(root)
    text, pictures = readme()
    assert Path('README.md').read_text() == text, 'make docs writes it'
    assert {p: Path(p).read_bytes() for p in pictures} == pictures
    assert {here(p) for p in (root/'nbs/images').glob('index_*.png')} == set(pictures)

def test_links_lead_somewhere():
    dead = []
    for page in [p for p in files() if p.suffix == '.md' or p in notebooks]:
        texts = [''.join(c['source']) for c in cells(page) if c['cell_type'] == 'markdown'] if page.suffix == '.ipynb' else [page.read_text()]
        for link in re.findall(r'\]\((?:<(?=[^>]))?(?![\w+.-]+:|#)([^)#\s>]+)', re.sub(r'(?s)```.*?```|`[^`\n]*`|\$[^$\n]*\$', '', '\n'.join(texts))):
            if not (page.parent/link).exists(): dead.append(f'{here(page)}: {link}')
    assert dead == []


# reports

@pytest.mark.parametrize('nb', reports, ids=here)
def test_a_report_is_complete(nb):
    kind = Record if nb.parts[-3] == 'audit' else Result
    found = [o['data'][kind.mime] for c in cells(nb) for o in c.get('outputs', []) if kind.mime in o.get('data', {})]
    assert json.loads(nb.with_suffix('.json').read_text()) == found[-1]
    if kind is Result: Result(found[-1]).check()
    page = nb.with_suffix('.html').read_text()
    assert len(page) < 300_000 and not re.search(r'(src|href)=["\'](https?:)?//', page) and '<script' not in page

def test_no_page_without_its_notebook_and_no_record_without_a_page():
    "The pages of the first seed stand for all; the records of the others are kept"
    pages = [p for p in (root/'reports').rglob('*/*.html') if not p.stem.startswith('compare')]
    assert [here(p) for p in pages if not p.with_suffix('.ipynb').exists()] == []
    records = [p for p in (root/'reports').glob('*/*/*.json') if p.parts[-3] != 'experiments']
    assert [here(p) for p in records if not {p.with_suffix('.html'), p.with_name(re.sub(r'-seed\d+', '-seed0', p.stem) + '.html')} & set(pages)] == []

def test_the_leaderboard_is_that_of_the_records(tmp_path):
    "Each record fits its schema, and README.md and index.html are what `noisynb report` makes of them"
    copy = shutil.copytree(root/'reports', tmp_path/'reports', ignore=shutil.ignore_patterns('*.ipynb', '.*'))
    leaderboard(copy)
    for name in 'README.md', 'index.html': assert (copy/name).read_text() == (root/'reports'/name).read_text(), 'noisynb report writes it'

def test_the_table_of_the_readme_is_that_of_the_records(monkeypatch):
    monkeypatch.chdir(root/'nbs')
    cell, = [c for c in cells(root/'nbs/index.ipynb') if 'read_grid' in ''.join(c['source'])]
    *body, last = ast.parse(''.join(cell['source'])).body
    space = {'Markdown': lambda text: text}
    exec(compile(ast.Module(body, []), 'cell', 'exec'), space)
    assert eval(compile(ast.Expression(last.value), 'cell', 'eval'), space) == ''.join(cell['outputs'][0]['data']['text/markdown'])

def test_the_packages_asked_for_are_those_that_are_used():
    project = tomllib.loads((root/'pyproject.toml').read_text())['project']
    asked = {re.match(r'[\w-]+', r)[0].lower() for r in project['dependencies']}
    names = {'faiss-cpu': 'faiss', 'scikit-learn': 'sklearn', 'pillow': 'PIL', 'pyyaml': 'yaml', 'ipykernel': None} # a kernel is run, not imported
    used = {i.split('.')[0] for mod in modules for i in imports(mod)}
    assert [r for r in asked if names.get(r, r) and names.get(r, r) not in used] == []

def test_nothing_names_a_machine():
    "No path of this machine, of a home folder or of an installed library, and in reports no host name"
    common = [Path(p) for p in ('/', '/tmp', '/usr', '/usr/src', '/opt', '/srv', '/var')]
    everywhere = [rf'(?<![\w.~<]){re.escape(str(p))}\b' for p in (root, root.parent, Path.home()) if p not in common and len(p.parts) > 2 and str(p) != '/home/me']   # one word could be anything
    homes = [r'(?<![\w.~])/(home|Users)/(?!me\b)\w', r'[A-Z]:\\+Users']
    outputs = [r'site-packages/', r'ipykernel_\d', r'(?<![\w.~])/tmp/\w'] + ([rf'\b{re.escape(socket.gethostname())}\b'] if re.search(r'[\d.-]', socket.gethostname()) else [])
    found = []
    for f in files():
        try: text = f.read_text()
        except UnicodeDecodeError: continue
        patterns = everywhere + ([] if here(f).startswith('tests/') else homes) + (outputs if f.suffix == '.ipynb' or here(f).startswith('reports/') else [])
        for p in patterns: found += [f'{here(f)}: {m[0]}' for m in re.finditer(p, text)]
    assert found == []

def test_sizes():
    sizes = {here(f): f.stat().st_size for f in files()}
    limit = lambda f: 300_000 if f.endswith('.html') else 1_000_000
    assert {f: s for f, s in sizes.items() if s > limit(f)} == {}
    assert sum(sizes.values()) < 40_000_000


# what is installed

def test_versions_agree():
    import noisynb
    config = ConfigParser()
    config.read(root/'settings.ini')
    citation = yaml.safe_load((root/'CITATION.cff').read_text())
    assert noisynb.__version__ == config['DEFAULT']['version'] == citation['version']
    assert re.search(rf'(?m)^## \[{re.escape(noisynb.__version__)}\]', (root/'CHANGELOG.md').read_text())

def test_nbdev_keeps_tags_and_leaves_pyproject_alone():
    config = ConfigParser()
    config.read(root/'settings.ini')
    assert 'tags' in config['DEFAULT']['allowed_cell_metadata_keys'].split() and config['DEFAULT']['update_pyproject'] == 'False'

def test_citations_have_what_the_format_asks_for():
    citation = yaml.safe_load((root/'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)
    for r in citation['references']:
        assert {'type', 'title', 'authors', 'year'} <= set(r) and {'doi', 'url'} & set(r)
        assert all(a['family-names'] and a['given-names'] for a in r['authors'])

def test_the_lock_fits_what_is_asked_for():
    pins = {}
    for line in (root/'constraints.txt').read_text().splitlines():
        r = Requirement(line)
        assert [s.operator for s in r.specifier] == ['=='], line
        pins.setdefault(r.name.lower().replace('_', '-'), []).append(next(iter(r.specifier)).version)
    asked = [Requirement(r) for r in sum(project['project']['optional-dependencies'].values(), project['project']['dependencies'])]
    for r in asked:
        if r.name == 'noisynb': continue
        assert r.name.lower() in pins, f'{r.name} is not locked: make lock'
        assert all(r.specifier.contains(v) for v in pins[r.name.lower()]), f'{r} is locked at {pins[r.name.lower()]}: make lock'

def test_the_wheel_holds_everything(tmp_path):
    "An installed package has all modules, the page template, the schema and the notebooks that are run"
    from zipfile import ZipFile
    pytest.importorskip('setuptools', '77')
    for f in 'noisynb', 'nbs': shutil.copytree(root/f, tmp_path/f, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for f in 'pyproject.toml', 'README.md', 'LICENSE': shutil.copy(root/f, tmp_path)
    subprocess.run([sys.executable, '-c', 'from setuptools.build_meta import build_wheel; build_wheel("dist")'], cwd=tmp_path, check=True, capture_output=True)
    with ZipFile(next((tmp_path/'dist').glob('*.whl'))) as z: inside = {n for n in z.namelist() if n.startswith('noisynb/')}
    ours = {here(p) for p in (root/'noisynb').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert inside == ours | {f'noisynb/notebooks/{n}.ipynb' for n in ('run_method', 'audit_labels', 'compare_methods')}
