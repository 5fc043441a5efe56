"The leaderboard: Markdown and the page to sort"
import base64, hashlib, json, re, statistics

import pytest
from bs4 import BeautifulSoup

from noisynb.core import NoisynbError
from noisynb.record import Result
from noisynb.reports.leaderboard import board, leaderboard

nasty = '<script>alert(1)</script>&"\'<img src=x onerror=alert(2)>'


def result(**changes):
    "A record with made-up numbers"
    made = '2026-01-01T00:00:00+00:00'
    r = dict(schema=1, method='wann', dataset='digits', embedding='raw', noise_type='instance', noise_rate=.4, noise_rate_realised=.39, seed=0, n_train=100, n_test=50, n_classes=3,
             imbalance=None, epochs=None, options={}, test_accuracy=.9, test_balanced_accuracy=.89, label_error_auroc=.95, label_error_average_precision=.92, label_error_f1=.75,
             correction_accuracy=.87, fit_seconds=.04, predict_seconds=.01, peak_memory_mib=400., device='cpu', published_accuracy=None, published_source=None,
             provenance=dict(noisynb='0.1.0', commit=None, dirty=None, python='3.11', versions={'numpy': '2'}, hardware='Some CPU', threads=2, data='0'*16, command='noisynb run wann', created=made))
    if 'created' in changes: r['provenance'] = r['provenance'] | dict(created=changes.pop('created'))
    if 'hardware' in changes: r['provenance'] = r['provenance'] | dict(hardware=changes.pop('hardware'))
    return Result(r | changes).check()


def write(folder, name, **changes):
    path = folder/f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result(**changes)))


def rows(folder):
    "The tables of the leaderboard: heading -> list of rows, a row being a list of cells"
    tables, heading = {}, None
    for line in leaderboard(folder).read_text().splitlines():
        if line.startswith('## '): heading = line[3:]
        elif line.startswith('| ') and '---' not in line: tables.setdefault(heading, []).append([c.strip() for c in re.split(r'(?<!\\)\|', line)[1:-1]])
    return tables


def test_leaderboard_by_hand(tmp_path):
    accuracy = [.90, .91, .95]
    for seed, a in enumerate(accuracy): write(tmp_path, f'd/wann-seed{seed}', seed=seed, test_accuracy=a, fit_seconds=1. + seed)
    write(tmp_path, 'd/knn-seed0', method='knn', test_accuracy=.93)
    write(tmp_path, 'e/knn-seed0', method='knn', noise_type='symmetric', test_accuracy=.5, published_accuracy=.512, published_source='A|B')
    (tmp_path/'d/wann-seed1.html').write_text('')
    (head, best, second), = [t for name, t in rows(tmp_path).items() if 'instance' in name]
    at = dict(zip(head, best)); plain = dict(zip(head, second))
    thin = '\u202f%'
    assert (plain['Method'], plain['Accuracy'], plain['Seeds']) == ('WANN', f'{100*statistics.mean(accuracy):.1f}{thin} ± {100*statistics.stdev(accuracy):.1f}{thin}', '3')
    assert (at['Method'], at['Accuracy'], at['Published']) == ('k-NN', f'93.0{thin}', 'none')   # one seed: no spread
    assert plain['Fit'] == '2.0\u202fs ± 1.0\u202fs (Some CPU, 2 threads)'
    assert plain['Pages, by seed'] == '[0](<d/wann-seed0.json>) [1](<d/wann-seed1.html>) [2](<d/wann-seed2.json>)'
    assert rows(tmp_path)['digits, 40\u202f% symmetric noise'][1][8] == '51.2\u202f% (A\\|B)'


def test_leaderboard_counts_a_seed_once_and_keeps_settings_apart(tmp_path):
    write(tmp_path, 'old', test_accuracy=.1, created='2025-01-01T00:00:00+00:00')
    write(tmp_path, 'new', test_accuracy=.9, created='2026-02-01T00:00:00+00:00')
    write(tmp_path, 'other', options={'k_max': 31}, test_accuracy=.8)
    write(tmp_path, 'features', embedding='onnx:net.onnx', test_accuracy=.7)
    write(tmp_path, 'smaller', n_train=50, test_accuracy=.6)
    (tmp_path/'.hidden').mkdir(); (tmp_path/'.hidden/x.json').write_text('no record')
    cells = [row[:4] for row in rows(tmp_path)['digits, 40\u202f% instance-dependent noise'] if row[0] != 'Method']   # two tables, one heading
    assert sorted(cells) == sorted([['WANN', 'raw', '1', '90.0\u202f%'], ['WANN (k\\_max 31)', 'raw', '1', '80.0\u202f%'], ['WANN', 'onnx:net.onnx', '1', '70.0\u202f%'], ['WANN', 'raw', '1', '60.0\u202f%']])
    assert [re.findall(r'^[\d,]+ training', line)[0] for line in (tmp_path/'README.md').read_text().splitlines() if ' training and ' in line] == ['100 training', '50 training']


def test_leaderboard_is_the_same_whatever_the_order_of_files(tmp_path):
    for seed in (2, 0, 1): write(tmp_path, f'x{9 - seed}', seed=seed, test_accuracy=.5 + seed/10)
    first = leaderboard(tmp_path).read_text()
    assert '[0]' in first and first.index('[0]') < first.index('[1]') < first.index('[2]') and leaderboard(tmp_path).read_text() == first


def page(folder):
    leaderboard(folder)
    return BeautifulSoup((folder/'index.html').read_text(), 'html.parser')


def test_missing_folder_and_bad_record(tmp_path):
    with pytest.raises(NoisynbError, match='there is no folder'): leaderboard(tmp_path/'none')
    (tmp_path/'bad.json').write_text(json.dumps(dict(result()) | dict(seed=None)))
    with pytest.raises(NoisynbError, match='bad.json.*seed'): leaderboard(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['bad.json']

@pytest.mark.parametrize('name', ['README.md', 'index.html'])
def test_what_is_not_ours_is_not_replaced(tmp_path, name):
    with pytest.raises(NoisynbError, match='no record of a run'): leaderboard(tmp_path)
    write(tmp_path, 'd/knn-seed0', method='knn')
    (tmp_path/name).write_text('my project')
    with pytest.raises(NoisynbError, match=f'{name} was not made by noisynb report'): leaderboard(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [name] and (tmp_path/name).read_text() == 'my project'
    (tmp_path/name).unlink()
    assert leaderboard(tmp_path) == leaderboard(tmp_path) # its own it replaces


def test_page_by_hand(tmp_path):
    accuracy = [.90, .91, .95]
    for seed, a in enumerate(accuracy): write(tmp_path, f'd/wann-seed{seed}', seed=seed, test_accuracy=a, fit_seconds=1. + seed, hardware='A' if seed else 'B')
    (tmp_path/'d/wann-seed0.html').write_text('')
    write(tmp_path, 'd/knn-seed0', method='knn', test_accuracy=.93, published_accuracy=.9, published_source='Somebody')
    write(tmp_path, 'e/ce-seed0', method='ce', embedding=None, noise_type='symmetric', test_accuracy=None, n_test=0, label_error_f1=None)
    thin = '\u202f%'
    overview, one, other = page(tmp_path).find_all('table')
    head = [th.get_text() for th in one.thead.find_all('th')]
    first, second = ({h: c for h, c in zip(head, tr.find_all(['th', 'td']))} for tr in one.tbody.find_all('tr'))
    assert (first['Method'].get_text(' '), second['Method'].get_text(' ')) == ('k-NN raw', 'WANN raw')   # best first
    assert second['Accuracy'].get_text() == f'{100*statistics.mean(accuracy):.1f}{thin} ± {100*statistics.stdev(accuracy):.1f}{thin}' and second['Seeds'].get_text() == '3'
    assert float(second['Accuracy']['data-v']) == pytest.approx(statistics.mean(accuracy)) and second['Accuracy'].a['href'] == 'd/wann-seed0.html'
    assert second['Fit'].get_text('|') == '1.0\u202fs|B, 2 threads|2.5\u202fs ± 0.71\u202fs|A, 2 threads' and second['Fit']['data-v'] == '1'   # different hardware is not averaged
    assert [a['href'] for a in second['Pages, by seed'].find_all('a')] == ['d/wann-seed0.html', 'd/wann-seed1.json', 'd/wann-seed2.json']
    assert (first['Published'].get_text('|'), second['Published'].get_text()) == (f'90.0{thin}|Somebody', '–') and 'Published' not in other.get_text()
    assert [td.get_text() for td in other.tbody.find_all('td')][:5] == ['1', '–', '', '0.950', '0.920'] and other.tbody.find_all('td')[5]['data-v'] == ''
    cells = {tr.th.get_text(): [td.get_text(' ') for td in tr.find_all('td')] for tr in overview.tbody.find_all('tr')}
    assert cells == {'k-NN': [f'93.0{thin} n\u202f=\u202f1', '–'], 'WANN': [f'92.0{thin} ± 2.6{thin} n\u202f=\u202f3', '–'], 'Cross entropy': ['–', '– n\u202f=\u202f1']}
    assert [td.get_text(' ') for td in overview.select('td.best')][0] == f'93.0{thin} n\u202f=\u202f1'


def test_several_features_stand_side_by_side(tmp_path):
    for name, a in ('raw', .7), ('b0.npz', .8): write(tmp_path, name[:2], embedding=name, test_accuracy=a)
    overview, table = page(tmp_path).find_all('table')
    assert overview.tbody.td.get_text(' ') == '80.0\u202f% n\u202f=\u202f1, b0.npz 70.0\u202f% n\u202f=\u202f1, raw' and len(table.tbody.find_all('tr')) == 2


def test_page_needs_nothing_else_and_runs_only_its_own_script(tmp_path):
    write(tmp_path, 'x', dataset=nasty, options={'a': nasty}, embedding=nasty, published_accuracy=.5, published_source=nasty, hardware=nasty)
    p = page(tmp_path)
    (script,), policy = p.find_all('script'), p.find('meta', attrs={'http-equiv': 'Content-Security-Policy'})['content']
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.string.encode()).digest()).decode()}'" in policy and "default-src 'none'" in policy
    assert 'alert' not in script.string and not [a for tag in p.find_all(True) for a in tag.attrs if a.startswith('on')]
    assert not p.find_all(['iframe', 'object', 'form']) and all(t.get('src') is None for t in p.find_all(True)) and all(not re.match(r'(https?:)?//', t['href']) for t in p.find_all(href=True))


def test_page_can_be_read_by_everyone(tmp_path):
    for kind in 'instance', 'pair': write(tmp_path, kind, noise_type=kind)
    p = page(tmp_path)
    levels = [int(h.name[1]) for h in p.find_all(re.compile('^h[1-6]$'))]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:])) and p.html['lang'] == 'en' and p.main
    assert all(th['scope'] in ('col', 'row') for th in p.find_all('th')) and 'best WANN with 90.0' in p.find('svg', role='img')['aria-label']
    names = [r['aria-label'] for r in p.find_all(role='region')]
    assert len(set(names)) == len(names) == len(p.find_all('table')) + 1 and p.find('label')['for'] == p.find('input')['id'] and p.find(role='status')
    assert {a['href'][1:] for a in p.find_all('a', href=re.compile('^#'))} <= {t['id'] for t in p.find_all(id=True)}
    assert all('aria-sort' in str(t.thead) for t in p.find_all('table')[1:]) and p.find('input').parent.has_attr('hidden')   # the filter needs the script, which shows it


def test_several_hundred_runs_stay_readable(tmp_path):
    settings = [dict(dataset=d, noise_type=n, n_train=10_000) for d in ('digits', 'fashion-mnist', 'cifar10n') for n in ('symmetric', 'pair', 'instance')]
    methods = 'wann ann knn corrected linear cleanlab lend-graph ce elr coteaching dividemix smr lend promix promix-one echoalign linear2 consensus'.split()
    tables = [{m: [(tmp_path/f'{s["dataset"]}/{s["noise_type"]}-0.4/{m}-seed{i}-cifar10_efflite2_pca256-loss-anl-ce.json', result(method=m, seed=i, test_accuracy=.5 + .02*j + .001*i, **s))
                   for i in range(3)] for j, m in enumerate(methods)} for s in settings]
    for entries in tables:
        for runs in entries.values():
            for path, _ in runs: path.parent.mkdir(parents=True, exist_ok=True); path.touch()
    text = board(tables, tmp_path)   # 486 runs
    assert len(text.encode()) < 300_000 and text.count('<tr>') == len(settings)*(len(methods) + 1) + len(methods) + 1


def test_a_comparison_beside_the_runs_is_linked(tmp_path):
    write(tmp_path, 'd/wann-seed0')
    assert not page(tmp_path).find('a', string=re.compile('tests of difference'))
    (tmp_path/'d/compare.html').write_text('')
    assert page(tmp_path).find('a', string=re.compile('tests of difference'))['href'] == 'd/compare.html'


def test_the_script_sorts_what_the_page_has():
    "Names that the script looks for, without a browser"
    from importlib import resources
    script = (resources.files('noisynb')/'templates/leaderboard/sort.js').read_text()
    text = board([], None)
    for name in re.findall(r"getElementById\('(\w+)'\)", script): assert f'id="{name}"' in text
    assert len(script) < 3000
