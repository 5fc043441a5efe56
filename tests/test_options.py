"What every method promises of its options: parameters stay as they were given, and what was settled is in `options_`"
import copy, json, pickle

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.base import clone

from noisynb.core import NoisynbError
from noisynb.embeddings import extract
from noisynb.methods import make, method_class, methods
from noisynb.methods.base import load
from noisynb.methods.images import Options, resolve
from noisynb.training import State
from toys import stripes

kind = {name: method_class(name).input for name in methods if name != 'cleanlab'} # an extra
on_images, on_embeddings = ([m for m, k in kind.items() if k == what] for what in ('images', 'embeddings'))
more = dict(echoalign=dict(echomod='identity', early_epochs=2, time_budget=9.), dividemix=dict(setting='cifar10n'), promix=dict(setting='cifar10n', rho=.4), lend=dict(recipe='code'))


def small(method, **options):
    return make(method, **dict(network='small-cnn', network_options=dict(widths=(4, 8)), epochs=3, batch_size=8, device='cpu', verbose=False) | more.get(method, {}) | options)

def same(a, b): return a.keys() == b.keys() and all(a[k] is b[k] or a[k] == b[k] for k in a)

@pytest.mark.parametrize('method', on_images)
def test_a_fit_changes_no_parameter(method, tmp_path):
    X, y, _ = stripes()
    model, seen = small(method), []
    given = copy.deepcopy(model.get_params())
    def watch(m):
        seen.append(same(m.get_params(), given) and same(clone(m).get_params(), given) and m.options_['epochs'] == 3)
        return {}
    model.fit(X, y, watch)
    assert seen == [True]*3 and same(model.get_params(), given) and same(clone(model).get_params(), given)
    assert model.options_.keys() == given.keys() and not any(model.options_[k] is None and v is not None for k, v in given.items())
    assert all(model.options_[k] == v for k, v in given.items() if v is not None and k != 'recipe')
    again = load(model.save(tmp_path/'model'))
    assert isinstance(again.options_, Options) and again.options_.epochs == 3 and (again.predict_proba(X) == model.predict_proba(X)).all()

@pytest.mark.parametrize('method', on_embeddings)
def test_a_fit_on_embeddings_changes_no_parameter(method):
    X, y, _ = stripes(120)
    model = make(method)
    given = copy.deepcopy(model.get_params(deep=False))
    model.fit(extract(X, 'raw'), y)
    assert same(model.get_params(deep=False), given) and same(clone(model).get_params(deep=False), given)

@pytest.mark.parametrize('method', on_images)
def test_half_a_fit_leaves_nothing(method):
    X, y, _ = stripes()
    model = small(method)
    given = copy.deepcopy(model.get_params())
    def stop(m): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): model.fit(X, y, stop)
    assert not [k for k in vars(model) if k not in given and k != '_networks'] and same(model.get_params(), given)
    with pytest.raises(NoisynbError, match='one class'): model.fit(X, np.zeros(len(y), int))
    assert not hasattr(model, 'options_')

@pytest.mark.parametrize('method', on_images)
def test_a_model_of_before_with_fewer_options(method, tmp_path):
    "Files that hold other options, or none, still say what an image is"
    X, y, _ = stripes()
    model = small(method).fit(X, y)
    proba = model.predict_proba(X)
    for fewer in dict(recipe='fast'), None:
        if fewer is None: del model.options_
        else: model.options_ = fewer
        assert (load(model.save(tmp_path/'model')).predict_proba(X) == proba).all()

def test_options_are_read_only():
    o = Options(dict(a=1, b=dict(c=2)))
    assert (o.a, o['b'], dict(o)) == (1, dict(c=2), dict(a=1, b=dict(c=2))) and o == dict(o) and 'x' not in o
    for change in (lambda: setattr(o, 'a', 2), lambda: setattr(o, 'new', 2)):
        with pytest.raises(NoisynbError, match='set_params'): change()
    with pytest.raises(TypeError): o['a'] = 2
    with pytest.raises(AttributeError): o.x
    assert pickle.loads(pickle.dumps(o)) == copy.deepcopy(o) == o

def test_settings_join_recipes_by_one_rule():
    table = dict(shares=dict(warmup=.1, rho=1, tau=2), counts=dict(warmup=5, rho=1, tau=2))
    known, asked = dict(much=dict(warmup=10, rho=3, tau=4, other=5, source='here')), dict(recipe='counts', setting='much', warmup=None, rho=None, tau=None)
    assert resolve(asked, 9, table, settings=known, fixed=dict(counts=('tau',))) == dict(recipe='counts', setting='much', warmup=10, rho=3, tau=2)
    assert resolve(asked | dict(recipe='shares', rho=0), 9, table, settings=known) == dict(recipe='shares', setting='much', warmup=.1, rho=0, tau=4)

@pytest.mark.parametrize('method', [m for m in (*on_images, 'lend-graph') if method_class(m).renamed])
def test_former_names_are_read(method, tmp_path):
    "Options of files that were written before; the text that a checkpoint has to agree on stays as it was"
    kind = method_class(method)
    known, former = make(method).get_params(), {**kind.renamed, **kind.removed}
    assert set(kind.renamed.values()) <= set(known) and not set(former) & set(known)
    X, y, _ = stripes()
    if kind.input == 'embeddings': model = make(method).fit(X := extract(X, 'raw'), y)
    else:
        model = small(method).fit(X, y)
        old = model._identity(X, y)
        assert set(former) <= set(old) and not set(kind.renamed.values()) & set(old) and all(old[k] == repr(v) for k, v in kind.removed.items())
    path, back = model.save(tmp_path/'model'), {new: name for name, new in kind.renamed.items()}
    with safe_open(path, 'numpy') as f: header, arrays = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    params, plain = json.loads(header['params']), json.loads(header['plain'])
    header['params'] = json.dumps({back.get(k, k): v for k, v in params.items()} | dict.fromkeys(kind.removed))
    header['plain'] = json.dumps({'/'.join(back.get(part, part) if i else part for i, part in enumerate(k.split('/'))): v for k, v in plain.items()})
    save_file(arrays, path, header)
    again = load(path)
    assert (again.predict_proba(X) == model.predict_proba(X)).all() and again.get_params().keys() == known.keys()
    assert method == 'lend-graph' or again.options_.keys() == model.options_.keys()

def test_former_names_in_a_checkpoint():
    state = State(optimizer=None, start=None)
    state.load_state_dict(dict(optimiser=3, start=2, means=[]))
    assert vars(state) == dict(optimizer=3, start=2)
    with pytest.raises(NoisynbError, match='another method'): state.load_state_dict(dict(optimiser=3, start=2, means=[1]))
