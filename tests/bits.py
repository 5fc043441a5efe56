"""Whether a change left every result as it was, to the last bit

    python tests/bits.py write FILE     run every method and write what came out, as hashes
    python tests/bits.py check FILE     run them again and name whatever is different

Methods run on digits and, where NOISYNB_DATA holds CIFAR-10, on a sample of it. What is compared: every array of the fitted model (weights,
`label_quality_`, `corrected_labels_` and so on), the history without its times, and the chances of the test images. Hashes hold for one kind of
processor and one version of the libraries, which the file names: write it before a change, check it afterwards. `bits.json` is such a file.
"""
import argparse, hashlib, json, sys, tempfile, warnings
from pathlib import Path

import numpy as np

networks = dict(epochs=3, verbose=False)
cases = { # name -> method, options; on digits and on CIFAR-10
    **{m: (m, {}) for m in ('knn', 'ann', 'wann', 'corrected', 'linear', 'consensus', 'lend-graph')},
    'wann-flda': ('wann', dict(reduce='flda')),
    'linear-gce': ('linear', dict(loss='gce')),
    **{m: (m, networks) for m in ('ce', 'elr', 'coteaching', 'dividemix', 'smr', 'promix', 'lend')},
    **{f'{m}-{r}': (m, networks | dict(recipe=r, network='small-cnn', batch_size=32, warmup=1))
       for m, r in (('dividemix', 'published'), ('dividemix', 'fast'), ('dividemix', 'medium'), ('smr', 'published'), ('smr', 'animal10n'),
                    ('promix', 'published'), ('promix', 'lmnl'), ('promix', 'fast'), ('promix', 'medium'), ('lend', 'code'), ('lend', 'paper'))},
    'dividemix-setting': ('dividemix', networks | dict(recipe='fast', network='small-cnn', batch_size=32, setting='cifar10-asymmetric-40')),
    'promix-setting': ('promix', networks | dict(recipe='fast', network='small-cnn', batch_size=32, setting='cifar10-instance-40')),
    'lend-bank': ('lend', networks | dict(graph='bank', bank=96, stratified=True)),
    'echoalign': ('echoalign', networks | dict(echo_epochs=2)),
    'echoalign-fast': ('echoalign', networks | dict(recipe='fast', echo_epochs=1, mode='official', finetune=.3)),
    'echoalign-select-only': ('echoalign', networks | dict(mode='select_only', select='loss', noise_rate=.4)),
    'echoalign-control': ('echoalign', networks | dict(mode='control')),
}


def digest(value): return hashlib.sha256(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

def array(a): return digest(f'{a.dtype.str}{a.shape}'.encode() + np.ascontiguousarray(a).tobytes())

def group(key): return '/'.join(key.split('/')[:2]) # one hash for all weights of a network

def samples():
    "Name -> training images and given labels, test images"
    from noisynb.datasets import available, load
    from noisynb.noise import corrupt
    for name, n in ('digits', 240), ('cifar10', 120):
        if not available(name): continue
        data = load(name)
        rows = np.random.default_rng(0).permutation(len(data.train))[:n]
        part = data.train.take(rows)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield name, part.images, corrupt(part, 'symmetric', .3, seed=0, n_classes=data.n_classes).given, data.test.images[:64]

def outcome(method, options, X, given, X_test):
    "Hashes of all that a fitted method holds"
    from safetensors import safe_open
    from noisynb.embeddings import extract
    from noisynb.methods import make, method_class
    if method_class(method).input == 'embeddings': X, X_test = (extract(x, 'raw') for x in (X, X_test))
    model = make(method, **options).fit(X, given)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f'{folder}/model')
        with safe_open(f'{folder}/model', 'numpy') as f: arrays = {k: array(f.get_tensor(k)) for k in f.keys()}
    found = {name: digest({k: v for k, v in arrays.items() if group(k) == name}) for name in sorted(set(map(group, arrays)))}
    for i, row in enumerate(getattr(model, 'history_', [])): found[f'history {i}'] = digest({k: v for k, v in row.items() if 'second' not in k})
    return found | dict(proba=array(model.predict_proba(X_test)), corrected=digest(np.asarray(model.corrected_labels_).tolist()))

def machine():
    import torch, sklearn, faiss
    names = [l.split(':', 1)[1].strip() for l in Path('/proc/cpuinfo').read_text().splitlines() if l.startswith(('model name', 'model\t'))]
    return dict(processor=' / '.join(dict.fromkeys(names)), numpy=np.__version__, torch=torch.__version__, sklearn=sklearn.__version__, faiss=faiss.__version__)

def run(only=''):
    "Data set and case -> hashes"
    found = {}
    for name, *data in samples():
        for case, (method, options) in cases.items():
            key = f'{name}: {case}'
            if only not in key: continue
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                found[key] = outcome(method, options, *data)
            print(key, file=sys.stderr)
    return found

def compare(was, now):
    "A line for each difference; what is only in one of them counts where it is missing now"
    for key, hashes in was.items():
        if key not in now: yield f'{key}: not run'; continue
        if other := [k for k, v in hashes.items() if now[key].get(k) != v]: yield f'{key}: {", ".join(other)}'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['write', 'check']); parser.add_argument('file', type=Path)
    parser.add_argument('--only', default='', help='part of the name of a case')
    asked = parser.parse_args()
    if asked.what == 'write':
        asked.file.write_text(json.dumps(dict(machine=machine(), cases=run(asked.only)), indent=0) + '\n')
    else:
        was = json.loads(asked.file.read_text())
        if was['machine'] != machine(): sys.exit(f'{asked.file} was written on {was["machine"]}; this is {machine()}, where bits may differ: write it anew from the commit before the change')
        found = run(asked.only)
        wrong = list(compare({k: v for k, v in was['cases'].items() if asked.only in k}, found))
        print('\n'.join(wrong) or f'{len(found)} cases, the same to the bit')
        sys.exit(bool(wrong))
