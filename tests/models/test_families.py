"""Every family against transformers: states, logits, gradients, round trips."""

import numpy as np
import pytest
import reference

VARIANTS = list(reference.VARIANTS)


@pytest.fixture(scope='module', params=VARIANTS)
def live(request, tmp_path_factory):
    """(a random classifier of transformers, the same read by jdkd)."""
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    model = reference.build(request.param)
    return model, reference.read_live(model, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize('lengths', [(130, 60, 2), (9, 9), (3, 2, 17, 11)])
def test_states_and_logits_are_those_of_transformers(live, lengths):
    model, read = live
    tokens, types = reference.rows(lengths, pad_id=read.config.pad_id)
    states, logits = reference.ours(read, tokens, types)
    expected = [x.detach().numpy() for x in reference.theirs(model, tokens, types)]
    mask = tokens != read.config.pad_id
    np.testing.assert_allclose(states[mask], expected[0][mask], atol=1e-5)
    np.testing.assert_allclose(logits, expected[1], atol=1e-5)
    assert np.std(expected[1]) > 0.001


def test_gradients_are_those_of_transformers(live):
    model, read = live
    tokens, types = reference.rows((20, 7, 13, 2, 9, 9, 5, 16), pad_id=read.config.pad_id)
    target = np.random.default_rng(1).dirichlet(np.ones(4), 2).astype(np.float32)
    pairs = reference.gradients(model, read, tokens, types, target)
    assert max(np.abs(theirs).max() for _, theirs in pairs.values()) > 0.01
    for path, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=path)
