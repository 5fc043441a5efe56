"""Every line of README.md is run: Python blocks as they stand, with the values printed below them, shell lines in a copy of the project

A line that would take minutes, fetch something or stay open is run in the short form that `short` gives it."""
import os, re, shlex, shutil, subprocess, sys
from pathlib import Path

import pytest
from PIL import Image

root = Path(__file__).parent.parent
text = (root/'README.md').read_text()
blocks = re.findall(r"```(\w+)\n((?:.*\n)*?)```\n(?:\n((?: {4}.*\n)+))?", text) # language, code, and the value printed below
lines = [line.split('  #')[0].strip() for language, code, _ in blocks if language == 'sh' for line in code.splitlines()]
short = {
    'make report': 'make --dry-run report', # from an empty environment
    'make test': 'make --dry-run test', # all of what this test is one of
    'make lab': 'make --dry-run lab', # stays open
    'pip install -e ".[dev]"': None, # fetches; see below
    'noisynb audit PATH': 'noisynb audit photos --method knn',
    'noisynb sweep sweeps/digits.toml': 'noisynb sweep sweeps/digits.toml --dry-run',
    'nbdev_test': 'nbdev_test --path nbs/14_methods/00_registry.ipynb --n_workers 0',
}

def test_nothing_is_forgotten():
    assert {language for language, *_ in blocks} == {'sh', 'python'} and len(lines) > 5
    assert len(text.splitlines()) < 100

def test_the_python_blocks_say_what_is_printed_below_them():
    import ast, contextlib, io
    names, compared = {}, 0
    for language, code, below in blocks:
        if language != 'python': continue
        tree, said = ast.parse(code), io.StringIO()
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(said):
            exec(compile(tree, 'README.md', 'exec'), names)
            value = eval(compile(ast.Expression(last.value), 'README.md', 'eval'), names) if last else None
        shown = said.getvalue().strip() or ('' if value is None else repr(value))
        number = r'\d+(?:\.\d+)?'
        assert re.sub(number, '0', shown) == re.sub(number, '0', below.strip())
        for ours, theirs in zip(re.findall(number, shown), re.findall(number, below)):
            assert float(ours) == pytest.approx(float(theirs), rel=.02) # distances of another processor may round otherwise
            compared += 1
    assert compared > 3

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy of what the lines read, and a folder of photographs"
    from noisynb.datasets import load
    folder = tmp_path_factory.mktemp('project')
    for f in 'Makefile', 'pyproject.toml', 'constraints.txt', 'settings.ini': shutil.copy(root/f, folder)
    for f in 'nbs', 'sweeps', 'reports/digits/pair-0.4': shutil.copytree(root/f, folder/f, ignore=shutil.ignore_patterns('.*', '*.html'))
    for i, (image, label) in enumerate(zip(*(part[:200] for part in (load('digits').train.images, load('digits').train.labels)))):
        (folder/f'photos/{label}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder/f'photos/{label}/{i}.png')
    return folder

@pytest.mark.parametrize('line', lines)
def test_a_line_of_the_shell(project, line):
    line = short.get(line, line)
    if line is None: pytest.skip('fetches everything; .github/workflows runs it')
    command, path = line.split()[0], os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
    if command == 'make' and not shutil.which(command): pytest.skip('no make here')
    assert shutil.which(command, path=path), f'no {command} here'
    before = set(project.rglob('*'))
    done = subprocess.run(shlex.split(line), cwd=project, capture_output=True, text=True, env=os.environ | dict(PATH=path, OMP_NUM_THREADS='1', PYTHONPATH=str(root), NOISYNB_CACHE=str(project/'cache')))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    made = {p.relative_to(project).as_posix() for p in set(project.rglob('*')) - before}
    wanted = {'papermill': ['out.ipynb'], 'noisynb run': ['reports/digits/pair-0.4/wann-seed0.html'], 'noisynb compare': ['reports/digits/pair-0.4/compare.html'],
              'noisynb audit': ['reports/audit/photos/audit.html', 'reports/audit/photos/suspects.csv']}
    for start, files in wanted.items():
        if line.startswith(start): assert set(files) <= made
    assert done.stdout.strip() or line.startswith(('papermill', 'nbdev_test'))

@pytest.mark.parametrize('name', ['tutorial', 'howto_add_a_method', 'howto_add_a_data_set', 'which_method', 'run_method', 'compare_methods', 'audit_labels'])
def test_what_is_read_first_fits(name):
    "104 characters fit in a cell of JupyterLab in a window of 1280 pixels; chapters have wider lines, which `make lab` breaks"
    import json
    wide = [line for c in json.loads((root/f'nbs/{name}.ipynb').read_text())['cells'] if c['cell_type'] == 'code' for line in ''.join(c['source']).split('\n') if len(line) > 104]
    assert wide == []

def test_what_pip_installs_has_the_extra():
    import tomllib
    extras = tomllib.loads((root/'pyproject.toml').read_text())['project']['optional-dependencies']
    assert {e for names in re.findall(r'pip install \S*?\[([\w,]+)\]', text) for e in names.split(',')} <= extras.keys()
    assert 'run: pip install -e ".[dev]"' in (root/'.github/workflows/ci.yml').read_text()
