"Grids, engines and sweeps: with a stub in place of `noisynb run` where the run itself is not the point"
import contextlib, json, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path

import pytest

from noisynb.sweeps import engines, grids
from noisynb import sweeps
from noisynb.core import NoisynbError
from noisynb.experiment import Config
from noisynb.datasets import datasets
from noisynb.methods import make
from noisynb.noise import kinds

root = Path(__file__).parent.parent
stub = '''
import json, os, pathlib, shlex, signal, sys, time
words = sys.argv[1:]
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
out, keep = pathlib.Path(words[words.index('-o') + 1]), '--record-only' not in words
pairs = words[2:words.index('-o')]
given = dict(zip(pairs[1::3], pairs[2::3]))
book = pathlib.Path(os.environ['STUB_BOOK'])
with open(book, 'a') as f: f.write(json.dumps(dict(name=out.stem, begin=time.time(), pid=os.getpid(), threads=os.environ['OMP_NUM_THREADS'], cards=os.environ.get('CUDA_VISIBLE_DEVICES'))) + chr(10))
time.sleep(float(os.environ.get('STUB_SECONDS', .1)))
if given.get('seed') in os.environ.get('STUB_FAILS', '').split(): print('Traceback' + chr(10) + 'noisynb: run_method.ipynb stopped in cell 3: ValueError: no luck', file=sys.stderr); sys.exit(1)
if given.get('seed') in os.environ.get('STUB_DIES', '').split(): os.kill(os.getpid(), 9)
out.parent.mkdir(parents=True, exist_ok=True)
record = dict(test_accuracy=.5, provenance=dict(created='2026-01-02T00:00:00+00:00', command=shlex.join(['noisynb', *words[:words.index('-o')]])))
for suffix, text in [('.json', json.dumps(record))] + [('.html', '<h1>'), ('.ipynb', '{}')]*keep: out.with_suffix(suffix).write_text(text)
'''


@pytest.fixture
def pool(tmp_path, monkeypatch):
    "Makes an engine that runs the stub; `book()` is what was begun"
    (tmp_path/'stub.py').write_text(stub)
    monkeypatch.setenv('STUB_BOOK', str(tmp_path/'book'))
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    make = lambda **kw: engines.Local(**dict(cpus=4, memory=64, gpus=[]) | kw, command=(sys.executable, '-S', str(tmp_path/'stub.py')))
    make.book = lambda: [json.loads(l) for l in (tmp_path/'book').read_text().splitlines()] if (tmp_path/'book').exists() else []
    return make

def grid(seeds=3, **more): return dict(grid=dict(method='knn', noise_type='symmetric', noise_rate=.2, seed=list(range(seeds)), **more))

def files(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file() and '.noisynb-sweep' not in p.parts)

def claims(folder): return list((folder/'.noisynb-sweep/claims').glob('[0-9a-f]*'))


# grids

def test_a_grid_is_a_product_with_rules():
    g = dict(grid=dict(method=['knn', 'wann', 'dividemix'], seed=[0, 1], labels=[dict(noise_type='symmetric', noise_rate=[.2, .5]), dict(noise_type='pair', noise_rate=.4)]),
             exclude=[dict(method='knn', noise_rate=[.2, .5])], include=dict(method='knn', noise_rate=.5, options=[dict(k=3), dict(k=5)]),
             set=[dict(where=dict(method=['wann', 'knn']), embedding='pca:8'), dict(where=dict(method='wann', seed=1), embedding='raw', cpus=2)])
    rows = grids.expand(g)
    assert len(rows) == 3*2*3 - 2*2 + 2
    assert {(c.method, c.seed, c.embedding, share['cpus']) for c, share in rows} == {('knn', 0, 'pca:8', 1), ('knn', 1, 'pca:8', 1), ('wann', 0, 'pca:8', 1), ('wann', 1, 'raw', 2),
        ('dividemix', 0, 'raw', 1), ('dividemix', 1, 'raw', 1)}
    assert [c.seed for c, _ in rows[:4]] == [0, 1, 0, 0] # the first axis changes slowest

@pytest.mark.parametrize('change, words', [
    (dict(grid=dict(methd='knn')), "did you mean 'method'"),
    (dict(grid=dict(method=[])), 'empty list'),
    (dict(gird={}), "did you mean 'grid'"),
    (dict(grid=dict(method='knn', data=[dict(method='wann')])), 'sets method twice'),
    (dict(exclude=dict(method='wann')), 'exclude 1'),
    (dict(exclude=dict(metod='wann')), "did you mean 'method'"),
    (dict(set=[dict(where=dict(method='knn'), embeding='raw')]), "did you mean 'embedding'"),
    (dict(grid=dict(method='wan')), "did you mean 'wann'"),
    (dict(grid=dict(method='wann', options=dict(k_mox=3))), 'k_m'),
    (dict(grid=dict(method='knn', dataset='digit')), "did you mean 'digits'"),
    (dict(grid=dict(method='knn', noise_rate=[.2, 1.5])), '1.5'),
    (dict(pages='some'), 'pages'),
    (dict(grid=dict(method='knn', noise_rate='high')), "noise_rate is 'high'"),
    (dict(grid=dict(method='knn', options='k')), "options is 'k'"),
    (dict(grid=dict(method='knn', seed=[0, -1])), 'seed is -1'),
    (dict(grid=dict(method='knn', cpus=0)), 'cpus is 0'),
    (dict(grid=dict(method='knn', memory='2G')), "memory is '2G'"),
    (dict(grid=dict(method='knn', gpus=-1)), 'gpus is -1'),
    (dict(grid=dict(method='knn', minutes='10')), "minutes is '10'"),
    (dict(grid=dict(method='ce', epochs=-3)), 'epochs is -3'),
    (dict(grid=dict(method='ce', time_budget='x')), "time_budget is 'x'"),
    (dict(grid=dict(method='knn', embedding='nope.npz')), 'nope.npz'),
    (dict(grid=[]), 'no runs'),
])
def test_mistakes_are_refused(change, words):
    with pytest.raises(NoisynbError, match=words): grids.plan(grid() | change)

def test_the_hash_is_of_what_decides_the_numbers():
    d, base = lambda p: Config(**p).key, dict(method='wann', noise_type='pair', noise_rate=.4)
    assert d(base) == d(base | dict(seed=0, options={}, data_dir='/x', dataset='digits', n_train=None)) and len(d(base)) == 16
    changed = [dict(method='ann'), dict(noise_rate=.3), dict(seed=1), dict(embedding='pca:8'), dict(n_train=500), dict(options=dict(k_max=9)), dict(device='cpu'), dict(imbalance=.1)]
    assert len({d(base | c) for c in [{}, *changed]}) == 1 + len(changed)
    assert d(dict(noise_type='none', noise_rate=.1)) == d(dict(noise_type='none')) and d(dict(method='ce', embedding='pca:8')) == d(dict(method='ce'))
    assert Config(method='ce', embedding='pca:8').place() == Config(method='ce').place()

def test_a_record_says_which_configuration_made_it():
    "Through its parameters, and through its command where it is older than these; and so does every record in the reports"
    for more in {}, dict(noise_type='pair', options=dict(k_max=31)), dict(n_train=500, imbalance=.1, embedding='pca:8', device='cpu', data_dir='/data'), dict(method='ce', epochs=3, time_budget=.5), dict(noise_type='pair', noise_rate=0):
        c = Config(**more)
        assert grids.made_by(dict(provenance=dict(command=c.command()))) == c.key == grids.made_by(dict(parameters=c.settled))
    for path in (root/'reports').glob('*/*/*.json'):
        record = grids.read_record(path)
        if record and 'test_accuracy' in record: assert grids.made_by(record) == grids.made_by(dict(provenance=record['provenance'])) != None, path
    assert grids.made_by({}) is None and grids.made_by(dict(parameters=['wann'])) is None and grids.made_by(dict(provenance=dict(command='noisynb run nothing -p seed 0'))) is None

def test_names_are_not_shared(tmp_path):
    jobs = grids.plan(dict(grid=dict(method='knn', device=['auto', 'cpu'])), tmp_path) # the device is not in the name
    assert len({j.path for j in jobs}) == 2 and all(j.key[:6] in j.path.stem for j in jobs)
    alone = grids.plan(dict(grid=dict(method='knn', device='cpu')), tmp_path)[0]
    assert alone.path.name == 'knn-seed0.ipynb'
    alone.path.parent.mkdir(parents=True)
    alone.path.with_suffix('.json').write_text(json.dumps(dict(provenance=dict(command='noisynb run knn -p seed 0')))) # somebody else's
    assert grids.plan(dict(grid=dict(method='knn', device='cpu')), tmp_path)[0].path.name == f'knn-seed0-{alone.key[:6]}.ipynb'

def test_pages_of_the_first_seed(tmp_path):
    for choice, kept in dict(all=6, first=2, none=0).items(): assert sum(j.pages for j in grids.plan(dict(grid=dict(method=['knn', 'ann'], seed=[5, 3, 4])), tmp_path, choice)) == kept
    assert {j.config.seed for j in grids.plan(dict(grid=dict(method=['knn', 'ann'], seed=[5, 3, 4]), pages='first'), tmp_path) if j.pages} == {3}

@pytest.mark.parametrize('path', sorted((root/'sweeps').glob('*')), ids=lambda p: p.name)
def test_grids_that_come_along(path):
    found = grids.read_grid(path)
    rows = grids.expand(found)
    people = {kind for spec in datasets.values() for kind in spec.human}
    for c, _ in rows:
        make(c.method, **c.options or {})
        assert c.noise_type in {*kinds, *people} and c.dataset in datasets
    assert len(rows) > 1

def test_files_of_all_kinds(tmp_path):
    g = grid()
    (tmp_path/'g.json').write_text(json.dumps(g))
    (tmp_path/'g.yaml').write_text('grid:\n  method: knn\n  noise_type: symmetric\n  noise_rate: 0.2\n  seed: [0, 1, 2]\n')
    (tmp_path/'g.toml').write_text('[grid]\nmethod = "knn"\nnoise_type = "symmetric"\nnoise_rate = 0.2\nseed = [0, 1, 2]\n')
    assert grids.read_grid(tmp_path/'g.json') == grids.read_grid(tmp_path/'g.yaml') == grids.read_grid(tmp_path/'g.toml') == g
    for name, text in dict(a='[grid', b=': [').items():
        (tmp_path/f'{name}.toml').write_text(text)
        (tmp_path/f'{name}.yaml').write_text(text)
        for suffix in 'toml', 'yaml':
            with pytest.raises(NoisynbError, match=f'{name}.{suffix}'): grids.read_grid(tmp_path/f'{name}.{suffix}')
    with pytest.raises(NoisynbError, match='no grid file'): grids.read_grid(tmp_path/'none.toml')


# a sweep

def test_what_is_finished_is_skipped(pool, tmp_path):
    said = []
    first = sweeps.sweep(grid(), tmp_path/'r', pool(), pages='first', say=said.append)
    assert (first.total, first.before, first.done, first.failed) == (3, 0, 3, []) and len(said) == 3 and '50.0%' in said[0]
    assert files(tmp_path/'r') == [f'digits/symmetric-0.2/knn-seed{n}' for n in ('0.html', '0.ipynb', '0.json', '1.json', '2.json')]
    again = sweeps.sweep(grid(4), tmp_path/'r', pool(), pages='first', say=said.append)
    assert (again.before, again.done) == (3, 1) and len(pool.book()) == 4
    more = sweeps.sweep(grid(4), tmp_path/'r', pool(), say=said.append) # all pages now
    assert (more.before, more.done) == (1, 3)
    assert sweeps.sweep(grid(4), tmp_path/'r', pool(), since='2026-01-02').before == 4 and sweeps.sweep(grid(4), tmp_path/'r', pool(), since='2026-01-03', say=said.append).before == 0
    for look in sweeps.sweep, lambda *a, **kw: sweeps.survey(*a[:2], **kw):
        with pytest.raises(NoisynbError, match='still to come'): look(grid(4), tmp_path/'r', pool(), since='2999-01-01')
        for nonsense in 'yesterday', '01/31/2026':
            with pytest.raises(NoisynbError, match=f"since is '{nonsense}'"): look(grid(4), tmp_path/'r', pool(), since=nonsense)
    assert sweeps._time('2026-01-02T01:00+02:00') == '2026-01-01T23:00:00+00:00'
    assert claims(tmp_path/'r') == []

def test_failures_are_told_and_tried_again_on_request(pool, tmp_path, monkeypatch):
    monkeypatch.setenv('STUB_FAILS', '1')
    monkeypatch.setenv('STUB_DIES', '2')
    said = []
    out = sweeps.sweep(grid(4), tmp_path/'r', pool(), say=said.append)
    why = {job.config.seed: message for job, message in out.failed}
    assert out.done == 2 and why[1] == 'run_method.ipynb stopped in cell 3: ValueError: no luck' and 'signal 9' in why[2]
    key = next(job.key for job, _ in out.failed if job.config.seed == 1)
    assert sum('FAILED' in line for line in said) == 2 and 'Traceback' in json.loads((tmp_path/f'r/.noisynb-sweep/failed/{key}.json').read_text())['log']
    monkeypatch.setenv('STUB_FAILS', '')
    out = sweeps.sweep(grid(4), tmp_path/'r', pool(), say=said.append)
    assert (out.before, out.done, len(out.failed)) == (2, 0, 2) and len(pool.book()) == 4 # they are not tried by themselves
    out = sweeps.sweep(grid(4), tmp_path/'r', pool(), retry=True, say=said.append)
    assert (out.before, out.done, len(out.failed)) == (2, 1, 1)
    rows = sweeps.survey(grid(5), tmp_path/'r').rows
    assert [(r['runs'], r['finished'], r['failed'], r['to do']) for r in rows] == [(5, 3, 1, 1)]*2 and rows[0]['time'] == rows[1]['time'] != '?'
    assert sweeps.survey(grid(4), tmp_path/'r').rows[0]['time'] == '' # what failed is not done unless asked for

def test_runs_fit_the_machine(pool, tmp_path, monkeypatch):
    monkeypatch.setenv('STUB_SECONDS', '.4')
    def together(machine, **share):
        "Runs that began while the first one ran, and all that were begun"
        (tmp_path/'book').unlink(missing_ok=True)
        out = sweeps.sweep(grid(4, **share), tmp_path/str(len(os.listdir(tmp_path))), pool(**machine), say=lambda s: None)
        begun = sorted(r['begin'] for r in pool.book())
        assert out.done == 4
        return sum(b < begun[0] + .35 for b in begun), pool.book()
    assert together(dict(cpus=1))[0] == 1
    assert together(dict(memory=2.))[0] == 1 # two would take 3 GiB
    assert together(dict(cpus=4), cpus=2)[0] <= 2
    assert together(dict(cpus=1), cpus=8)[0] == 1 # too large for the machine, so alone
    n, book = together(dict(gpus=['a', 'b']))
    assert n <= 2 and {r['cards'] for r in book} == {'a', 'b'} and {r['threads'] for r in book} == {'1'}
    assert {(r['cards'], r['threads']) for r in together(dict(gpus=['a']), gpus=0, cpus=2)[1]} == {('', '2')}

def test_cards_are_shared_out():
    job = lambda g, device='auto': grids.plan(dict(grid=dict(method='knn', gpus=g, device=device)) if g is not None else dict(grid=dict(method='knn', device=device)))[0]
    pool = engines.Local(4, 8, ['0', '1'])
    assert [pool.wants(j) for j in (job(None), job(0), job(.25), job(None, 'cpu'))] == [1., 0, .25, 0.]
    assert engines.Local(4, 8, []).wants(job(None)) == 0
    pool.cards['1'] = .5
    assert pool._give(.5) == [('1', .5)] and pool._give(1.) == [('0', 1.)] and pool._give(2.) is None
    with pytest.raises(NoisynbError, match='3 graphics cards'): pool.check(job(3))

def test_too_long_is_stopped(pool, tmp_path, monkeypatch):
    monkeypatch.setenv('STUB_SECONDS', '30')
    out = sweeps.sweep(grid(1, minutes=.005), tmp_path/'r', pool(), say=lambda s: None)
    assert 'stopped after 0.005 minutes' in out.failed[0][1] and out.seconds < 20

driver = '''
import sys
from noisynb import cli
from noisynb.sweeps import engines
make = engines.Local.__init__
engines.Local.__init__ = lambda self, *a: make(self, 2, 64, [], (sys.executable, '-S', {stub!r}))
sys.exit(cli.main(['sweep', {grid!r}, '-o', {out!r}]))
'''

def begin(tmp_path, seeds=4):
    (tmp_path/'g.json').write_text(json.dumps(grid(seeds)))
    code = driver.format(stub=str(tmp_path/'stub.py'), grid=str(tmp_path/'g.json'), out=str(tmp_path/'r'))
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'nothing happened'
        time.sleep(.05)

def gone(pid):
    import psutil
    try: return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error: return True

@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_runs(pool, tmp_path, monkeypatch, how):
    monkeypatch.setenv('STUB_SECONDS', '60')
    p = begin(tmp_path)
    wait_for(lambda: len(pool.book()) == 2)
    p.send_signal(how)
    assert p.wait(30) == 130 and 'the same command goes on' in p.stderr.read()
    wait_for(lambda: all(gone(r['pid']) for r in pool.book()), 5)
    assert claims(tmp_path/'r') == [] and files(tmp_path/'r') == []

def test_a_killed_sweep_goes_on(pool, tmp_path, monkeypatch):
    "Its runs live on and finish; the next sweep waits for them, and does those that died with it"
    monkeypatch.setenv('STUB_SECONDS', '5')
    p = begin(tmp_path)
    held = lambda: {json.loads(c.read_text() or '{}').get('pid') for c in claims(tmp_path/'r')}
    wait_for(lambda: len(pool.book()) == 2 and held() == {r['pid'] for r in pool.book()}) # claims were handed over
    p.kill()
    p.wait()
    os.kill(pool.book()[0]['pid'], signal.SIGKILL)
    monkeypatch.setenv('STUB_SECONDS', '.1')
    out = sweeps.sweep(grid(4), tmp_path/'r', pool(), say=lambda s: None)
    names = [r['name'] for r in pool.book()]
    assert out.done == 4 and sorted(names) == sorted([f'knn-seed{i}' for i in range(4)] + names[:1]) and claims(tmp_path/'r') == []

def test_two_sweeps_share_the_work(pool, tmp_path):
    outs = []
    go = lambda: outs.append(sweeps.sweep(grid(8), tmp_path/'r', pool(cpus=2), say=lambda s: None))
    threads = [threading.Thread(target=go) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert sorted(r['name'] for r in pool.book()) == [f'knn-seed{i}' for i in range(8)] and [o.before + o.done for o in outs] == [8, 8] and claims(tmp_path/'r') == []


# claims

def test_a_claim_lives_as_long_as_its_holder(tmp_path, monkeypatch):
    a, b = sweeps.Ledger(tmp_path).open(), sweeps.Ledger(tmp_path)
    assert a.claim('abc') and not b.claim('abc') and b.busy('abc')
    p = subprocess.Popen(['sleep', '60'])
    a.hand_over('abc', p.pid)
    assert b.busy('abc')
    p.kill(); p.wait()
    assert not b.busy('abc') and b.claim('abc') and not a.claim('abc')
    a.release('abc') # late, and of what was its own
    assert b.busy('abc') and not a.claim('abc')
    b.release('abc')
    assert claims(tmp_path) == []

def test_another_machine_is_dead_when_it_stays_silent(tmp_path):
    here, there = sweeps.Ledger(tmp_path).open(), sweeps.Ledger(tmp_path)
    there.host = 'elsewhere'
    assert there.claim('abc') and here.busy('abc')
    path, = claims(tmp_path)
    old = time.time() - sweeps.patience - 60
    os.utime(path, (old, old))
    assert not here.busy('abc')
    there.beat(['abc'])
    assert here.busy('abc')

@pytest.mark.parametrize('content', ['null', '{}', '5', '{"host": "HERE", "pid": "x", "started": 0}', '{"host": "HERE", "pid": -1, "started": "x"}', ''])
def test_what_others_put_among_the_claims_stops_nothing(tmp_path, content):
    ledger = sweeps.Ledger(tmp_path).open()
    damaged, foreign = (tmp_path/'.noisynb-sweep/claims'/name for name in ('abc.1', 'abc.1.sync-conflict'))
    damaged.write_text(content.replace('HERE', ledger.host))
    foreign.write_text('x')
    os.utime(damaged, (time.time() - 2*sweeps.patience,)*2)
    assert ledger.claim('abc') and sweeps.Ledger(tmp_path).busy('abc')
    ledger.release('abc')
    assert {p.name for p in foreign.parent.glob('abc*')} == {foreign.name}
    (tmp_path/'.noisynb-sweep/log.jsonl').write_bytes(b'null\n5\n{"alike": ["x"], "seconds": null}\n\xff\n{"alike": ["a"], "seconds": 2}\n')
    (tmp_path/'.noisynb-sweep/failed/abc.json').write_text('5')
    assert list(ledger.times()) == [(['a'], 2.)] and ledger.failed('abc') is None

def test_one_of_many_takes_over(tmp_path):
    ledgers = [sweeps.Ledger(tmp_path).open() for _ in range(8)]
    (tmp_path/'.noisynb-sweep/claims/abc.1').write_text(json.dumps(dict(host=ledgers[0].host, pid=2**22 + 1, started=0.)))
    barrier, won = threading.Barrier(8), []
    def go(l): barrier.wait(); won.append(l.claim('abc'))
    threads = [threading.Thread(target=go, args=(l,)) for l in ledgers]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sum(won) == 1


# the rest

def test_time_left():
    job = lambda m, **kw: grids.plan(dict(grid=dict(method=m, **kw)))[0]
    e = sweeps.Estimate()
    assert e.left([job('knn')], [], 2) is None
    e.add(sweeps._alike(job('knn')), 10); e.add(sweeps._alike(job('knn')), 20)
    assert e.of(job('knn', seed=3)) == 15 == e.of(job('wann')) # nothing nearer is known
    e.add(sweeps._alike(job('wann')), 60)
    assert e.of(job('wann', noise_type='pair')) == 60 and e.of(job('knn')) == 15
    assert e.left([job('knn')]*4, [(job('knn'), 5)], 2) == (4*15 + 10)/2 and e.left([job('wann')], [], 4) == 60

def test_work_that_others_wait_for_is_not_begun_twice():
    a, b, c = (grids.plan(dict(grid=dict(method=m, embedding=e)))[0] for m, e in (('knn', 'raw'), ('wann', 'raw'), ('wann', 'pca:8')))
    room = type('', (), dict(room=lambda self, job: True))()
    assert a.shared == b.shared != c.shared and sweeps._next([b, c], {a: 0}, set(), room) == 1
    assert sweeps._next([b, c], {a: 0}, {a.shared}, room) == 0 == sweeps._next([b], {a: 0}, set(), room)

def test_two_runs_do_not_search_the_same_neighbours(tmp_path, monkeypatch):
    "The second waits for the first, and finds its graph"
    import numpy as np
    from noisynb import experiment
    from noisynb.methods import make
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path))
    X, found = np.random.default_rng(0).normal(size=(3000, 20)).astype(np.float32), []
    slow = experiment.plain_vote(make('knn'), 51)
    type(slow).neighbor_graph, real = lambda self, X: (time.sleep(.5), real(self, X))[1], type(slow).neighbor_graph
    try:
        threads = [threading.Thread(target=lambda: found.append(experiment.shared_graph(make('knn'), X))) for _ in range(2)]
        for t in threads: t.start()
        for t in threads: t.join()
    finally: type(slow).neighbor_graph = real
    assert sorted(kept for _, _, kept in found) == [False, True] and np.array_equal(found[0][0].indices_, found[1][0].indices_)

def test_the_command_with_real_runs(tmp_path):
    "Two runs of k-NN on digits, pages of the first"
    (tmp_path/'g.toml').write_text('pages = "first"\n[grid]\nmethod = "knn"\nnoise_type = "pair"\nn_train = 300\nseed = [0, 1]\n')
    go = lambda *more: subprocess.run([sys.executable, '-m', 'noisynb', 'sweep', str(tmp_path/'g.toml'), '-o', str(tmp_path/'r'), *more], capture_output=True, text=True, cwd=root,
                                      env=os.environ | dict(NOISYNB_CACHE=str(tmp_path/'cache')))
    p = go()
    assert p.returncode == 0 and '2 runs; 0 finished before; 2 now; 0 failed' in p.stdout, p.stdout + p.stderr
    assert files(tmp_path/'r') == [f'digits/pair-0.4/knn-seed{n}' for n in ('0-n300.html', '0-n300.ipynb', '0-n300.json', '1-n300.json')]
    record = json.loads((tmp_path/'r/digits/pair-0.4/knn-seed1-n300.json').read_text())
    assert record['provenance']['threads'] == 1 and record['seed'] == 1 and record['n_train'] == 300
    p = go('--dry-run')
    assert p.returncode == 0 and p.stdout.split('\n')[1].split()[:6] == ['knn', 'digits', '2', '2', '0', '0']


# a cluster

@contextlib.contextmanager
def nodes(n):
    "A Ray cluster of nodes with one core each, made for this on one machine -> the cluster and its nodes"
    import ray
    from ray.cluster_utils import Cluster
    ray._private.utils.get_dashboard_dependency_error = lambda: ImportError('not wanted') # nodes are there in half the time
    cluster = Cluster()
    try:
        try: there = [cluster.add_node(num_cpus=1, num_gpus=0, **(dict(include_dashboard=False) if i == 0 else {})) for i in range(n)]
        except Exception as e:
            if 'timed out during startup' in str(e): pytest.skip('Ray gives a node half a minute to start, which was not enough on this busy machine')
            raise
        cluster.wait_for_nodes(timeout=120)
        yield cluster, there
    finally:
        ray.shutdown()
        cluster.shutdown()

def two_nodes(tmp_path, plan, command=None, wait=3, limit=300, **kw):
    """A sweep on two nodes. When `wait` runs are finished, the second node is killed.

    -> what became of it, nodes by name, records that were there before the kill with their time, the log, and the second node"""
    with nodes(2) as (cluster, (_, doomed)):
        engine = engines.Ray(cluster.address, command=command, **kw)
        log, outs, before = tmp_path/'r/.noisynb-sweep/log.jsonl', [], {}
        t = threading.Thread(target=lambda: outs.append(sweeps.sweep(plan, tmp_path/'r', engine, pages='none', say=lambda s: None)))
        t.start()
        rows = lambda: [json.loads(l) for l in log.read_text().splitlines()] if log.exists() else []
        wait_for(lambda: not t.is_alive() or len(rows()) >= wait and any(doomed.node_id.startswith(r['node']) for r in rows()), limit)
        before = {p.name: p.stat().st_mtime_ns for p in (tmp_path/'r').rglob('*.json') if '.noisynb-sweep' not in p.parts}
        cluster.remove_node(doomed, allow_graceful=False)
        t.join(limit)
        return outs[0], [r['node'] for r in rows()], before, doomed.node_id[:8]

@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv('RAY_AUTH_MODE', 'token')
    monkeypatch.setenv('RAY_AUTH_TOKEN', 32*'0123456789abcdef'[:8])
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')

def test_a_node_may_die(tmp_path, pool, monkeypatch, token):
    "Runs land on both nodes; nothing that was finished is lost or done again, and what the dead node was doing is done by the other"
    pytest.importorskip('ray', reason='needs Ray: pip install "noisynb[sweep]"')
    monkeypatch.setenv('STUB_SECONDS', '1.5')
    for i in range(4):   # a node that dies between two runs loses nothing, and proves nothing
        place, earlier = tmp_path/str(i), len(pool.book())
        out, nodes, before, doomed = two_nodes(place, grid(8), [sys.executable, '-S', str(tmp_path/'stub.py')])
        assert (out.done, out.failed) == (8, []) and len(set(nodes)) == 2 and doomed in nodes and nodes[-1] != doomed
        assert len(files(place/'r')) == 8 and all((place/'r/digits/symmetric-0.2'/name).stat().st_mtime_ns == t for name, t in before.items())
        begun = [r['name'] for r in pool.book()[earlier:]]
        twice = {n for n in begun if begun.count(n) > 1}
        assert len(twice) <= 1 and not twice & {Path(name).stem for name in before} and claims(place/'r') == []
        if twice: break
    assert twice

def test_a_wrong_address_is_told_at_once(monkeypatch):
    "Ray itself would go on trying for minutes"
    import types
    def init(**kw): raise AssertionError('asked Ray all the same')
    monkeypatch.setitem(sys.modules, 'ray', types.SimpleNamespace(is_initialized=lambda: False, init=init))
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)) # nobody listens there
        with pytest.raises(NoisynbError, match=r'no Ray cluster answers at .127.0.0.1:\d+. \(.*ray start --head'): engines.Ray(f'127.0.0.1:{s.getsockname()[1]}')

def test_the_command_on_a_cluster(tmp_path, token):
    "`noisynb sweep --engine ray`: real runs of k-NN, whose files come back; then there is nothing to do; a run that fails is told"
    pytest.importorskip('ray', reason='needs Ray: pip install "noisynb[sweep]"')
    (tmp_path/'g.toml').write_text('pages = "first"\n[grid]\nmethod = "knn"\nnoise_type = "pair"\nn_train = 300\nseed = [0, 1]\n')
    with nodes(1) as (cluster, _):
        go = lambda *more: subprocess.run([sys.executable, '-m', 'noisynb', 'sweep', str(tmp_path/'g.toml'), '--engine', 'ray', '--address', cluster.address, '-o', str(tmp_path/'r'), *more],
                                          capture_output=True, text=True, cwd=root, env=os.environ | dict(NOISYNB_CACHE=str(tmp_path/'cache')), timeout=300)
        p = go()
        assert p.returncode == 0 and '2 runs; 0 finished before; 2 now; 0 failed' in p.stdout, p.stdout + p.stderr
        assert files(tmp_path/'r') == [f'digits/pair-0.4/knn-seed{n}' for n in ('0-n300.html', '0-n300.ipynb', '0-n300.json', '1-n300.json')]
        assert all(json.loads(l)['node'] for l in (tmp_path/'r/.noisynb-sweep/log.jsonl').read_text().splitlines())
        p = go()
    assert p.returncode == 0 and '2 runs; 2 finished before; 0 now; 0 failed' in p.stdout and claims(tmp_path/'r') == [], p.stdout + p.stderr

def test_a_step_of_the_clock_makes_no_claim_dead(tmp_path, monkeypatch):
    import psutil
    ledger = sweeps.Ledger(tmp_path).open()
    assert ledger.claim('a'*16) and ledger.busy('a'*16)
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, 'create_time', lambda self: real(self) + 3600)
    assert ledger.busy('a'*16) and not sweeps.Ledger(tmp_path).claim('a'*16)

def test_a_number_that_another_process_has_now_is_no_claim(tmp_path):
    ledger = sweeps.Ledger(tmp_path).open()
    ledger.claim('b'*16)
    path = next(ledger.claims.glob('b*'))
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(started=17)))
    assert not ledger.busy('b'*16)
