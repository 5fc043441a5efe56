"The how-to for a new method, followed to the letter: every cell of it, the slow ones too, in the copy that it makes"
import json, os, subprocess, sys
from pathlib import Path

root = Path(__file__).parent.parent
howto = root/'nbs/howto_add_a_method.ipynb'

follow = '''import json, sys
names = {}
for c in json.load(open(sys.argv[1]))['cells']:
    source = ''.join(c['source'])
    if c['cell_type'] != 'code': continue
    if source.startswith('shutil.rmtree'): # before the copy goes
        project = names['project']
        print('FOUND', json.dumps(dict(record=names['record'], files=sorted(p.relative_to(project).as_posix() for p in project.rglob('*centres*')))))
    exec(source, names)
print('GONE', not project.exists())
'''

def test_followed_to_the_letter():
    done = subprocess.run([sys.executable, '-c', follow, howto.name], cwd=howto.parent, capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.split('FOUND ')[1].split('\n')[0])
    assert found['record']['method'] == 'centres' and found['record']['noise_type'] == 'symmetric' and found['record']['test_accuracy'] > .8
    assert {'nbs/14_methods/13_centres.ipynb', 'noisynb/methods/centres.py', 'tests/test_centres.py', *(f'reports/digits/symmetric-0.6/centres-seed0.{e}' for e in ('ipynb', 'html', 'json'))} <= set(found['files'])
    assert 'Success.' in done.stdout and "did you mean 'keep'" in done.stdout and 'GONE True' in done.stdout
    assert not (root/'noisynb/methods/centres.py').exists() and 'centres' not in (root/'noisynb/methods/registry.py').read_text()

def test_it_shows_what_it_says():
    "The outputs stored are those of a whole run"
    code = [c for c in json.loads(howto.read_text())['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).removeprefix('#| slow\n').startswith('sh(')]
    assert len(code) >= 5 and [c['source'] for c in code if not c['outputs']] == []
