"What the tests of methods on images share: images that take no time, a method that does not train, a run that was stopped"
import numpy as np
import pytest


def stripes(n=48, C=3, wrong=.3, seed=0):
    "Images with a bright stripe that tells the class, labels of which some are wrong, and the right ones"
    rng = np.random.default_rng(seed)
    true = np.arange(n) % C
    X = rng.integers(0, 60, (n, 8, 8, 1), dtype=np.uint8)
    X[np.arange(n), :, 2*true + 1] += 150
    return X, np.where(rng.random(n) < wrong, (true + rng.integers(1, C, n)) % C, true), true


class Untrained:
    "In front of a method: stops before training, so that its parts can be tried one by one"
    def _learn(self, X, codes, watch):
        from noisynb.methods import images
        kept = images.train
        images.train = lambda *a, **k: []
        try: super()._learn(X, codes, watch)
        finally:
            images.train = kept
            self.parts = self._state, self.options_, self._set, self._codes # what the functions of a method take
    def _finish(self): pass


def gone_on(make, stop, path):
    "A whole run, and one that was stopped after `stop` epochs and called again; history, quality and chances are equal to the bit"
    X, y, _ = stripes()
    class Stop(Exception): pass
    def watch(model):
        if len(calls) == stop: raise Stop
        return calls.append(1) or {}
    calls, whole = [], make().fit(X, y)
    with pytest.raises(Stop): make(checkpoint=path).fit(X, y, watch=watch)
    model = make(checkpoint=path).fit(X, y)
    timeless = lambda m: [{k: v for k, v in row.items() if 'second' not in k} for row in m.history_]
    assert timeless(model) == timeless(whole) and (model.label_quality_ == whole.label_quality_).all()
    assert (model.predict_proba(X) == whole.predict_proba(X)).all()
    return whole, model
