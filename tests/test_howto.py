"The how-tos, followed to the letter: every cell of them, the slow ones too, in the copy that each makes"
import json, os, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent

follow = '''import json, sys
names = {}
for c in json.load(open(sys.argv[1]))['cells']:
    source = ''.join(c['source'])
    if c['cell_type'] != 'code': continue
    if source.startswith('shutil.rmtree'): # before the copy goes
        project = names['project']
        files = sorted(p.relative_to(project).as_posix() for p in project.rglob('*') if p.is_file())
        print('FOUND', json.dumps(dict(record=names['record'], files=files)))
    exec(source, names)
print('GONE', not project.exists())
'''

def followed(name):
    "What a how-to said, the record that it made and the files of its copy"
    done = subprocess.run([sys.executable, '-c', follow, name], cwd=root/'nbs', capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='agg'))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'Success.' in done.stdout and 'GONE True' in done.stdout
    found = json.loads(done.stdout.split('FOUND ')[1].split('\n')[0])
    return done.stdout, found['record'], set(found['files'])

def report(place): return {f'reports/{place}.{e}' for e in ('ipynb', 'html', 'json')}

def test_a_method_is_added():
    said, record, files = followed('howto_add_a_method.ipynb')
    assert record['method'] == 'centres' and record['noise_type'] == 'symmetric' and record['test_accuracy'] > .8
    assert {'nbs/14_methods/13_centres.ipynb', 'noisynb/methods/centres.py', 'tests/test_centres.py'} | report('digits/symmetric-0.6/centres-seed0') <= files
    assert "did you mean 'keep'" in said
    assert not (root/'noisynb/methods/centres.py').exists() and 'centres' not in (root/'noisynb/methods/registry.py').read_text()

def test_a_data_set_is_added():
    said, record, files = followed('howto_add_a_data_set.ipynb')
    assert record['dataset'] == 'arrows' and record['noise_type'] == 'asymmetric' and record['test_accuracy'] > .6
    assert {'data/arrows.npz', 'tests/test_arrows.py'} | report('arrows/asymmetric-0.3/knn-seed0') <= files
    assert '4 classes: up, left, down, right' in said and 'fetch arrows' in said and '[0.7 0.  0.3 0. ]' in said
    assert 'arrows' not in (root/'noisynb/datasets/standard.py').read_text()

@pytest.mark.parametrize('name', ['howto_add_a_method', 'howto_add_a_data_set'])
def test_it_shows_what_it_says(name):
    "The outputs stored are those of a whole run"
    code = [c for c in json.loads((root/f'nbs/{name}.ipynb').read_text())['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).removeprefix('#| slow\n').startswith('sh(')]
    assert len(code) >= 5 and [c['source'] for c in code if not c['outputs']] == []
