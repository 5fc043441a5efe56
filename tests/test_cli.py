"The command a user types"
import json, os, re, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pytest

from noisynb import cli
from noisynb.experiment import Config
from noisynb.reports import book, notebook
from noisynb.core import NoisynbError

root = Path(__file__).parent.parent
command = [sys.executable, '-c', 'import sys; from noisynb.cli import main; sys.exit(main())']


@pytest.fixture
def at_root(monkeypatch): monkeypatch.chdir(root)

@pytest.fixture
def toy(tmp_path):
    "A notebook with two parameters that does as it is told"
    def write(body, parameters="method: str = 'knn'\nseed: int = 0"):
        cells = [nbformat.v4.new_code_cell(parameters, metadata={'tags': ['parameters']}), nbformat.v4.new_code_cell(body)]
        kernel = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path/'toy.ipynb')
        return tmp_path/'toy.ipynb'
    return write

def run(*args, **kw): return subprocess.run([*command, *args], capture_output=True, text=True, **kw)

def said(capsys, *args):
    "Exit status of a command that should be refused, and the one line it said"
    try: status = cli.main(list(args))
    except SystemExit as e: status = e.code
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('noisynb: ')
    return status, err


# starting

heavy = 'numpy torch sklearn pandas matplotlib papermill nbformat yaml noisynb.core'.split()

@pytest.mark.parametrize('code', ['import noisynb', 'import noisynb.cli', 'from noisynb.cli import main\ntry: main(["--help"])\nexcept SystemExit: pass'])
def test_starts_light(code):
    p = subprocess.run([sys.executable, '-c', f'{code}\nimport sys\nsys.stderr.write(" ".join(m for m in {heavy} if m in sys.modules))'], capture_output=True, text=True, check=True)
    assert p.stderr == ''

def test_help_names_every_public_command(capsys):
    with pytest.raises(SystemExit) as e: cli.main(['--help'])
    text = capsys.readouterr().out
    listed = [line.split()[0] for line in text.splitlines() if re.match(r' {4}[a-z]+ {2,}\w', line)]
    assert e.value.code == 0 and sorted(listed) == sorted('run list sweep compare report audit fetch doctor'.split()) and 'readme' not in text

def test_version(capsys):
    import noisynb
    with pytest.raises(SystemExit) as e: cli.main(['--version'])
    assert e.value.code == 0 and capsys.readouterr().out == f'noisynb {noisynb.__version__}\n'


# refusing

@pytest.mark.parametrize('args, words', [
    ([], 'COMMAND'),
    (['lst'], "'lst'"),
    (['run'], 'method'),
    (['list', 'method'], "'method'"),
    (['run', 'wan'], "did you mean 'wann'"),
    (['run', 'wann', '-p', 'noise_rte', '0.4'], "did you mean 'noise_rate'"),
    (['run', 'wann', '-p', 'method', 'knn'], "no parameter 'method'"),
    (['run', 'wann', '-p', 'dataset', 'digit'], "did you mean 'digits'"),
    (['run', 'wann', '-p', 'noise_type', 'simmetric'], "did you mean 'symmetric'"),
    (['run', 'wann', '-p', 'noise_type', 'worst'], "no kind of noise for digits 'worst'"), # digits has no human labels
    (['run', 'wann', '-p', 'options', '{k_mim: 5}'], "did you mean 'k_min'"),
    (['run', 'wann', '-p', 'options', 'k_min'], 'mapping'),
    (['run', 'wann', '-p', 'options', '{k_min: 5'], 'dict'),
    (['run', 'wann', '-p', 'seed', 'one'], "seed is 'one'; it takes int"),
    (['run', 'wann', '-p', 'noise_rate', 'None'], 'noise_rate'),
    (['run', 'wann', '-p', 'device', 'tpu'], "'tpu'"),
    (['run', 'wann', '-p', 'noise_rate', '1.5'], 'noise_rate is 1.5'),
    (['run', 'wann', '-p', 'n_train', '1'], 'n_train is 1'),
    (['run', 'wann', '-p', 'imbalance', '0'], 'imbalance is 0'),
    (['run', 'wann', '-p', 'seed', '-1'], 'seed is -1'),
    (['run', 'wann', '-p', 'embedding', 'rawr'], "did you mean 'raw'"),
    (['run', 'wann', '-p', 'embedding', 'pca:0'], "the embedding is 'pca:0'"),
    (['run', 'wann', '-p', 'embedding', 'onnx:missing.onnx'], 'there is no file missing.onnx'),
    (['run', 'wann', '-p', 'embedding', 'missing.npz'], 'there is no file missing.npz'),
    (['audit', 'digits', '--embedding', 'pca:0'], "the embedding is 'pca:0'"),
    (['run', 'ce', '-p', 'epochs', '0'], 'epochs is 0'),
    (['run', 'ce', '-p', 'time_budget', '-1'], 'time_budget is -1'),
    (['run', 'wann', '-p', 'epochs', '3'], 'does not train in epochs'),
    (['run', 'wann', '-p', 'noise_type', 'matrix'], "no kind of noise for digits 'matrix'"),
    (['run', 'wann', '-p', 'dataset', 'nothing.npz'], 'nothing.npz'),
    (['run', 'wann', '-o', 'report.html'], '.ipynb')])
def test_mistakes_are_one_line_and_status_2(args, words, capsys, at_root, tmp_path, monkeypatch):
    monkeypatch.setattr('papermill.execute_notebook', lambda *a, **k: pytest.fail('it ran'))
    status, line = said(capsys, *args, *(['-o', str(tmp_path/'x.ipynb')] if args[:1] == ['run'] and '-o' not in args and len(args) > 1 else []))
    assert status == 2 and words in line and line.count('\n') == 1
    assert not list(tmp_path.iterdir())

def test_missing_files_are_named_before_the_run(capsys, at_root, tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYNB_DATA', str(tmp_path))
    status, text = said(capsys, 'run', 'wann', '-p', 'dataset', 'cifar10n', '-o', str(tmp_path/'x.ipynb'))
    assert status == 2 and 'CIFAR-10_human.pt' in text and str(tmp_path) in text

def test_a_mistake_has_no_traceback_in_the_terminal():
    p = run('run', 'wan', cwd=root)
    assert p.returncode == 2 and 'Traceback' not in p.stderr and p.stdout == ''

def test_a_notebook_without_tag_is_refused(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('method = 1')], metadata={'kernelspec': {'name': 'python3', 'display_name': 'p', 'language': 'python'}})
    nbformat.write(nb, tmp_path/'a.ipynb')
    with pytest.raises(NoisynbError, match='tag'): cli.declared(tmp_path/'a.ipynb')


# reading

def test_parameters_are_those_that_papermill_reads(at_root):
    from papermill import inspect_notebook
    theirs, ours = inspect_notebook(str(cli.find_notebook())), cli.declared(cli.find_notebook())
    assert ours == {name: {k: p[k] for k in ('inferred_type_name', 'default', 'help')} for name, p in theirs.items()} and len(ours) > 10

def test_a_slip_is_answered_before_the_slow_imports():
    code = "import sys, noisynb.cli as c\nc.main(['run', 'wann', '-p', 'noise_rate', '1.5'])\nprint([m for m in ('papermill', 'nbformat', 'torch', 'faiss') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root).stdout == '[]\n'

@pytest.mark.parametrize('text, kind, value', [('0.4', 'float', .4), ('1e-3', 'float', 1e-3), ('2', 'float', 2.), ('3', 'int', 3), ('-1', 'int', -1), ('yes', 'str', 'yes'),
    ('007', 'str', '007'), ('none', 'str', 'none'), ('None', 'int', None), ('null', 'str', None), ('{a: 1, b: [x, 2]}', 'dict', {'a': 1, 'b': ['x', 2]}), ('[1, 2]', 'list', [1, 2])])
def test_values(text, kind, value):
    got = notebook.read_value('p', text, kind)
    assert got == value and type(got) is type(value)

@pytest.mark.parametrize('text, kind', [('1.5', 'int'), ('x', 'float'), ('[1', 'list'), ('3', 'dict')])
def test_bad_values_name_the_parameter(text, kind):
    with pytest.raises(NoisynbError, match=f'^p is {re.escape(repr(text))}'): notebook.read_value('p', text, kind)

@pytest.mark.parametrize('more, place', [({}, 'reports/digits/symmetric-0.2/wann-seed3.ipynb'), (dict(noise_type='worst'), 'reports/digits/worst/wann-seed3.ipynb'),
    (dict(noise_type='none', noise_rate=0.), 'reports/digits/none/wann-seed3.ipynb'), (dict(dataset='/far/away/my.npz'), 'reports/my/symmetric-0.2/wann-seed3.ipynb'), (dict(noise_rate=1/3), 'reports/digits/symmetric-0.333333/wann-seed3.ipynb'),
    (dict(n_train=5), 'reports/digits/symmetric-0.2/wann-seed3-n5.ipynb'), (dict(imbalance=.001, epochs=2), 'reports/digits/symmetric-0.2/wann-seed3-tail0.001-epochs2.ipynb'),
    (dict(embedding='raw', n_train=None, imbalance=None, epochs=None, options={}), 'reports/digits/symmetric-0.2/wann-seed3.ipynb'), (dict(embedding='/far/dino.npz'), 'reports/digits/symmetric-0.2/wann-seed3-dino.ipynb'),
    (dict(embedding='pca:64', options={'k_min': 5}), 'reports/digits/symmetric-0.2/wann-seed3-pca-64-k_min-5.ipynb')])
def test_default_place(more, place):
    assert Config(**dict(method='wann', dataset='digits', noise_type='symmetric', noise_rate=.2, seed=3) | more).place().as_posix() == place

def test_long_names_of_places_end_in_a_hash():
    base = dict(method='wann', dataset='digits', noise_type='none', noise_rate=0., seed=0)
    a, b = (Config(**base | dict(embedding='timm:' + 'x'*90 + tail)).place().name for tail in 'ab')
    assert a != b and len(a) < 70 and re.search(r'-[0-9a-f]{6}\.ipynb$', a)

def test_lists(capsys):
    assert cli.main(['list']) == 0
    words = capsys.readouterr().out.split()
    assert {'methods', 'wann', 'datasets', 'digits', 'noise', 'instance', 'backbones', 'raw'} <= set(words) and 'matrix' not in words

def test_doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYNB_DATA', str(tmp_path))
    assert cli.main(['doctor']) == 0
    text = capsys.readouterr().out
    assert f'{tmp_path}' in text and re.search(r'torch +2', text) and re.search(r'cifar10 +not here', text) and re.search(r'digits +here', text)

def test_doctor_reports_what_does_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(cli, 'requirements', lambda: [(None, 'torch', '<2.14', '2.15.0', False), ('echo', 'diffusers', '>=0.42', None, False)])
    assert cli.main(['doctor']) == 1
    text = capsys.readouterr().out
    assert re.search(r'torch +2\.15\.0 +<2\.14 +no', text) and 'pip install "noisynb[echo]"' in text

def test_requirements_know_extras():
    needs = {name: (extra, fits) for extra, name, _, _, fits in cli.requirements()}
    assert needs['numpy'] == (None, True) and needs['timm'][0] == 'backbones' and needs['ray'][0] == 'sweep'


# running

def test_a_run_moves_everything_at_once(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nb, seen = toy('print(method, seed)'), []
    def page(draft):
        seen.append(sorted(p.name for p in (tmp_path/'out').iterdir() if not p.name.startswith('.')))
        return draft.with_suffix('.html') if draft.with_suffix('.html').write_text('page') else None
    files = cli.execute(nb, 'out/a.ipynb', dict(method='wann', seed=7), [page])
    assert seen == [[]] and [f.as_posix() for f in files] == ['out/a.html', 'out/a.ipynb']
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['a.html', 'a.ipynb']
    done = nbformat.read('out/a.ipynb', 4)
    assert done.cells[-1].outputs[0].text == 'wann 7\n'
    assert done.metadata.papermill.output_path == 'out/a.ipynb' and str(tmp_path) not in Path('out/a.ipynb').read_text()

def test_what_an_earlier_run_left_does_not_stay_beside_a_new_record(toy, tmp_path):
    page = lambda kind: lambda draft: draft.with_suffix(kind) if draft.with_suffix(kind).write_text('"provenance" <meta name="generator" content="noisynb">') else None
    cli.execute(toy('1'), tmp_path/'a.ipynb', dict(method='wann', seed=7), [page('.json'), page('.html')])
    for name in 'a.csv', 'b.html': (tmp_path/name).write_text('of somebody else')
    cli.execute(toy('1'), tmp_path/'a.ipynb', dict(method='wann', seed=7), [page('.json')], keep=False)
    assert {p.name for p in tmp_path.glob('a.*')} == {'a.json', 'a.csv'}
    cli.execute(toy('1'), tmp_path/'b.ipynb', dict(method='wann', seed=7), [page('.json')], keep=False)
    assert (tmp_path/'b.html').read_text() == 'of somebody else'   # is left alone

def test_an_executed_notebook_says_a_table_once(toy, tmp_path):
    class_ = "class T:\n    def _repr_html_(self): return '<p>x'\n    def __repr__(self): return 'y'*self.n\n"
    files = cli.execute(toy(class_ + 'for n in 300, 301:\n    t = T(); t.n = n; display(t)'), tmp_path/'a.ipynb', dict(method='wann', seed=7))
    done = nbformat.read(files[-1], 4)
    assert [sorted(o.data) for o in done.cells[-1].outputs] == [['text/html', 'text/plain'], ['text/html']]
    assert not any(set(c.metadata) & {'papermill', 'execution'} for c in done.cells)

def test_a_failing_cell_leaves_what_was_there(toy, tmp_path, capfd):
    (tmp_path/'a.html').write_text('old')
    with pytest.raises(NoisynbError, match=r'toy.ipynb stopped in cell 3: ZeroDivisionError') as e: cli.execute(toy('1/0'), tmp_path/'a.ipynb', {'seed': 1}, [lambda d: pytest.fail('a page of a failed run')])
    assert e.value.status == 1 and '1/0' in capfd.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.html', 'toy.ipynb'] and (tmp_path/'a.html').read_text() == 'old'

def test_our_own_errors_come_without_traceback(toy, tmp_path, capfd):
    body = "from noisynb.core import NoisynbError\nraise NoisynbError('k is 99 and there are 10 examples; take a smaller k')"
    with pytest.raises(NoisynbError, match='k is 99') as e: cli.execute(toy(body), tmp_path/'a.ipynb', {'seed': 1})
    assert e.value.status == 1 and 'raise NoisynbError' not in capfd.readouterr().err

def test_a_dying_kernel_is_named(toy, tmp_path):
    with pytest.raises(NoisynbError, match='out of memory') as e: cli.execute(toy('import os; os._exit(9)'), tmp_path/'a.ipynb', {'seed': 1})
    assert e.value.status == 1 and [p.name for p in tmp_path.iterdir()] == ['toy.ipynb']

def test_a_page_that_fails_leaves_nothing(toy, tmp_path):
    def broken(draft): raise NoisynbError('no page')
    with pytest.raises(NoisynbError, match='no page'): cli.execute(toy('1'), tmp_path/'out/a.ipynb', {'seed': 1}, [broken])
    assert not list((tmp_path/'out').iterdir())

def test_an_unwritable_place_is_named(toy, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(NoisynbError, match='cannot write .*choose another place'): cli.execute(toy('1'), tmp_path/'file'/'a.ipynb', {'seed': 1})

def test_interrupt_leaves_nothing(toy, tmp_path):
    nb = toy(f"import os, time\nopen({str(tmp_path/'pid')!r}, 'w').write(f'{{os.getpid()}}.')\ntime.sleep(60)")
    code = f"import sys, noisynb.cli as c\nc._run = lambda args: c.execute({str(nb)!r}, 'out/a.ipynb', {{'seed': 1}})\nsys.exit(c.main(['run', 'wann']))"
    p = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait = lambda done: any(done() or time.sleep(.05) for _ in range(600))
    pid = lambda: (tmp_path/'pid').read_text() if (tmp_path/'pid').exists() else ''
    try:
        assert wait(lambda: pid().endswith('.')), p.stderr.read()
        p.send_signal(signal.SIGINT)
        assert p.wait(30) == 130 and p.stderr.read() == 'noisynb: interrupted, nothing was kept\n'
    finally: p.kill()
    assert not list((tmp_path/'out').iterdir())
    assert wait(lambda: not Path(f'/proc/{pid()[:-1]}').exists()) # the kernel is gone too

def test_a_pipe_that_closes_is_no_error():
    code = "import noisynb.cli as c, sys\nc._doctor = lambda args: print('x'*10**6)\nsys.exit(c.main(['doctor']))"
    p = subprocess.run(f'{sys.executable} -c "$CODE" | head -c 5', shell=True, capture_output=True, text=True, env=os.environ | {'CODE': code})
    assert (p.stdout, p.stderr) == ('xxxxx', '')

def test_the_module_is_the_command_too():
    p = subprocess.run([sys.executable, '-m', 'noisynb', 'run', 'wan'], capture_output=True, text=True, cwd=root)
    assert p.returncode == 2 and "did you mean 'wann'" in p.stderr

def test_folders_of_this_machine_are_taken_out(toy, tmp_path):
    nb = toy('1', "dataset: str = 'a'\nembedding: str = 'raw'\ndata_dir: str = None\nseed: int = 0")
    asked = dict(dataset=str(tmp_path/'my "set".npz'), embedding=f'onnx:{tmp_path}/net.onnx', data_dir=str(tmp_path), seed=4)
    out, = cli.execute(nb, tmp_path/'out/a.ipynb', asked)
    done = nbformat.read(out, 4)
    safe = dict(dataset='my "set".npz', embedding='onnx:net.onnx', data_dir='$NOISYNB_DATA', seed=4)
    injected, = (c.source for c in done.cells if 'injected-parameters' in c.metadata.tags)
    values = {}
    exec(injected, values)
    assert done.metadata.papermill.parameters == safe == {k: values[k] for k in safe} and str(tmp_path) not in out.read_text()

def test_no_bar_outside_a_terminal(toy, tmp_path, capfd):
    cli.execute(toy('1'), tmp_path/'a.ipynb', {'seed': 1})
    err = capfd.readouterr().err
    assert '%|' not in err and 'cell' not in err and '\r' not in err

def test_a_bar_with_the_time_left_in_a_terminal(toy, tmp_path):
    pty, termios = pytest.importorskip('pty'), pytest.importorskip('termios')
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, '-c', f"import noisynb.cli as c\nc.execute({str(toy('1'))!r}, 'a.ipynb', {{'seed': 1}})"], cwd=tmp_path, stderr=theirs, check=True)
    os.set_blocking(ours, False)
    text = os.read(ours, 65536).decode()
    os.close(ours); os.close(theirs)
    assert re.search(r'a: .*%\|.*\d+/3 \[\d\d:\d\d<', text)

def test_from_wrong_labels_to_a_page(tmp_path):
    p = run('run', 'knn', '-p', 'dataset', 'digits', '-p', 'noise_type', 'symmetric', '-p', 'noise_rate', '0.3', '-p', 'seed', '1', '-p', 'n_train', '300', '-o', 'out/knn.ipynb',
        cwd=tmp_path, env=os.environ | {'NOISYNB_CACHE': str(tmp_path/'cache')})
    assert p.returncode == 0, p.stderr
    result, page = json.loads((tmp_path/'out/knn.json').read_text()), (tmp_path/'out/knn.html').read_text()
    assert (result['method'], result['noise_type'], result['noise_rate'], result['seed'], result['n_train']) == ('knn', 'symmetric', .3, 1, 300)
    assert .5 < result['test_accuracy'] <= 1 and f"{result['test_accuracy']:.4f}" in p.stdout
    assert not re.search(r'(src|href)="(https?:)?//', page) and len(page) < 300_000
    assert all(str(tmp_path) not in (tmp_path/f'out/knn.{kind}').read_text() for kind in ('json', 'html', 'ipynb'))
    assert [p.name for p in sorted((tmp_path/'out').iterdir())] == ['knn.html', 'knn.ipynb', 'knn.json'] and 'out/knn.html' in p.stdout

def test_report_rebuilds_the_leaderboard(capsys, monkeypatch):
    monkeypatch.setattr('noisynb.reports.leaderboard.leaderboard', lambda folder: f'{folder}/README.md')
    assert cli.main(['report', 'some']) == 0 and capsys.readouterr().out.split() == ['table', 'some/README.md', 'page', 'some/index.html']


# the README

png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=='

def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = nbformat.v4
    picture = new.new_output('display_data', {'image/png': png, 'text/plain': 'quality of\n right and wrong labels'})
    table = new.new_output('execute_result', {'text/html': '<table></table>', 'text/plain': 'a  b'})
    words = new.new_output('display_data', {'text/markdown': '**bold**', 'text/plain': '<IPython.core.display.Markdown object>'})
    progress = new.new_output('display_data', {'text/html': '<small>done</small>', 'text/plain': '<IPython.core.display.HTML object>'})
    nb = new.new_notebook(cells=[
        new.new_markdown_cell('# T\n[a](00_core.ipynb) [b](../reports/README.md#top) [c](https://x.org/y) [d](#here) ![e](images/e.png)'),
        new.new_code_cell('#| hide\nsecret = 1'), new.new_code_cell('#| slow\nplot()', outputs=[picture]), new.new_code_cell('table', outputs=[progress, table, words])])
    Path('nbs/images').mkdir(parents=True)
    Path('nbs/images/index_9_9.png').write_text('old')
    nbformat.write(nb, 'nbs/index.ipynb')
    book.write_readme()
    text = Path('README.md').read_text()
    assert '[a](nbs/00_core.ipynb) [b](reports/README.md#top) [c](https://x.org/y) [d](#here) ![e](nbs/images/e.png)' in text
    assert '```python\nplot()\n```' in text and 'secret' not in text and '<table>' not in text and '    a  b' in text and '**bold**' in text and 'object' not in text and '\n\n\n' not in text
    link = re.search(r'!\[quality of right and wrong labels\]\((nbs/images/index_\d_0.png)\)', text)[1]
    assert [p.as_posix() for p in Path('nbs/images').iterdir()] == [link] and Path(link).read_bytes().startswith(b'\x89PNG')
    before = text, Path(link).stat().st_mtime_ns
    assert book.readme() == (text, {link: Path(link).read_bytes()}) and before[1] == Path(link).stat().st_mtime_ns

def test_fetch(capsys):
    assert cli.main(['fetch', 'digits']) in (0, None) and 'digits, 10 classes' in capsys.readouterr().out
    assert cli.main(['fetch', 'digit']) and "did you mean 'digits'" in capsys.readouterr().err
