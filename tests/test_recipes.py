"""The full-scale recipes: all that can be built of them without the models and the collection."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from jdkd import config as configs
from jdkd.configs import adam, large_to_small, mta4dpr
from jdkd.distillation.objective import Objective
from jdkd.distillation.step import learning_rate
from jdkd.distillation.trainer import make_trainer
from jdkd.models import cross_encoder, dual_encoder, pretrained, public_models
from jdkd.models.config import pick_layers
from jdkd.models.families import FAMILIES
from jdkd.models.transformer import param_shapes
from jdkd.planning import corpus_size, tracing
from jdkd.runtime import mesh as meshes
from jdkd.systems import loading
from jdkd.validation import validate

pytestmark = pytest.mark.slow

# What the sentence-transformers files of the recipes' models tell.
TOLD = {
    'sentence-transformers/msmarco-distilbert-base-tas-b': {'pooling': 'cls'},
    'intfloat/e5-base-v2': {'pooling': 'mean', 'normalize': True},
    'BAAI/bge-base-en-v1.5': {'pooling': 'cls', 'normalize': True},
    'sentence-transformers/multi-qa-mpnet-base-dot-v1': {'pooling': 'cls'},
}


def checkpoint(name, layers=None) -> pretrained.Pretrained:
    """A model as it would be read, with shapes for weights."""
    raw, told = public_models.CONFIGS[str(name)], TOLD.get(str(name), {})
    config, _ = pick_layers(pretrained._read_config(raw, pathlib.Path(name)), layers)
    classifies = FAMILIES[config.family].classifier in raw.get('architectures', ())
    if classifies:
        # Of cross-encoders a fresh head is initialised with the rest: a thin model spares that.
        config = dataclasses.replace(config, num_layers=1, vocab_size=8)
    head = cross_encoder.head_shapes(config, 1) if classifies else {}
    return pretrained.Pretrained(
        config=config,
        params=nested(param_shapes(config), lambda s: jax.ShapeDtypeStruct(s, np.float32)),
        head=nested(head, lambda s: np.zeros(s, np.float32)) if classifies else None,
        labels=('LABEL_0',) if classifies else (),
        tokenizer_dir=pathlib.Path(name),
        pooling=told.get('pooling'),
        normalize=told.get('normalize', False),
        projection=None,
        classifies=classifies,
        projection_params=None,
        query_prompt='',
        passage_prompt='',
        max_length=config.max_positions,
        query_length=config.max_positions,
        passage_length=config.max_positions,
        source=str(name),
        license=None,
    )


def nested(shapes, make):
    return traverse_util.unflatten_dict({k: make(s) for k, s in shapes.items()}, sep='/')


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    monkeypatch.setattr(loading.weights, 'find_weights', lambda name, revision: name)
    monkeypatch.setattr(loading.pretrained, 'read_pretrained', checkpoint)


VARIANTS = ('msmarco', 'nq', 'beir=some/corpus')
RECIPES = [(method, arg) for method in (mta4dpr, adam) for arg in VARIANTS]


def resolved(method, arg):
    return configs.resolve(method.get_config(arg))


@pytest.mark.parametrize(('method', 'arg'), RECIPES)
def test_a_recipe_is_valid_and_complete(method, arg):
    config = resolved(method, arg)
    validate(config)
    used = {config.first_stage, *config.teacher.members, *config.assistants}
    kinds = [config.systems[name].kind for name in used]
    assert 'cross_encoder' in kinds and len(config.assistants) == (3 if method is mta4dpr else 0)
    assert config.index.kind == 'scann' and config.dark.reinforced == 4 and config.dark.noisy == 2
    for entry in (config.student, *(config.systems[name] for name in used)):
        if entry.kind != 'bm25':
            assert entry.dtype == 'bfloat16'
            is_open = entry.weights == 'intfloat/simlm-base-msmarco'
            assert entry.revision is None if is_open else len(entry.revision) == 40
    # Batches divide over the chips of a host, and epochs are as many as the recipe says.
    assert config.batch_size % 16 == 0
    assert config.optimizer.total_steps == config.rounds * config.steps_per_round
    assert config.loss.in_batch > 0
    if arg == 'nq':
        assert config.systems['ranker'].dropout > 0  # It is fine-tuned.
    # Each round has the same share of the learning.
    rates = jax.vmap(learning_rate(config.optimizer))(np.arange(config.optimizer.total_steps))
    shares = rates.reshape(config.rounds, -1).sum(1) / rates.sum()
    np.testing.assert_allclose(shares, 1 / config.rounds, rtol=1e-3)
    queries = {'msmarco': 502_939, 'nq': 58_880}.get(arg)
    if queries:
        epochs = config.optimizer.total_steps * config.batch_size / queries
        assert epochs == pytest.approx({'msmarco': 6, 'nq': 40}[arg], rel=0.05)


@pytest.mark.parametrize('arg', VARIANTS)
def test_every_model_takes_the_lengths_that_it_is_given(arg):
    config = resolved(mta4dpr, arg)
    for name in (*config.teacher.members, *config.assistants):
        if config.systems[name].kind == 'bm25':
            continue
        model, params, source = loading.read_model(config.systems[name], seed=0)
        if isinstance(model, cross_encoder.CrossEncoder):
            assert model.head == 'linear' and source.head is not None
            meshes.check_rules(params, config.sharding)  # It may be trained from labels first.
        else:
            assert isinstance(model, dual_encoder.DualEncoder)


@pytest.mark.parametrize(('method', 'arg'), [(mta4dpr, a) for a in VARIANTS] + [(adam, 'msmarco')])
def test_the_train_step_is_traced_over_a_mesh(method, arg):
    config = resolved(method, arg)
    mesh = meshes.make_mesh(devices=jax.devices())
    model, params, _ = loading.read_model(config.student, config.seed)
    trainer = make_trainer(Objective.of_student(config), mesh=mesh, model=model, params=params)
    size = sum(np.prod(x.shape) for x in jax.tree.leaves(trainer.abstract.params))
    assert 65e6 < size < 67e6
    candidates = 1 + config.candidates.hard_negatives + 6
    lengths = np.full((1, config.batch_size, candidates), config.train_passage_length)
    sharding = meshes.batch_sharding(mesh)
    batch = tracing.student_batch(config, trainer.rows, lengths, sharding)
    assert trainer.rows.shared % 128 == 0 and batch['slots'].shape[1] == candidates
    state, metrics = jax.eval_shape(trainer.step, trainer.abstract, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), trainer.abstract
    )
    terms = {name for name in metrics if name.startswith('loss/')}
    expected = {'loss/contrastive', 'loss/teacher', 'loss/dark'}
    of_assistants = {'loss/assistant', 'loss/in_batch'} if config.assistants else set()
    assert terms == expected | of_assistants


@pytest.mark.parametrize('arg', ['beir', 'beir=', 'nq,tiny', 'all'])
def test_a_variant_that_does_not_exist(arg):
    with pytest.raises(ValueError, match='use tiny, msmarco, nq or beir=PATH'):
        mta4dpr.get_config(arg)


def test_a_collection_of_your_own_may_come_from_any_source():
    config = mta4dpr.get_config('beir=some/corpus')
    assert config.collection.source == 'beir:some/corpus'
    found = adam.get_config('msmarco=files').collection.source
    assert found == 'msmarco:files'
    # At the size of a laptop it is the default config with another source.
    assert mta4dpr.get_config().batch_size < config.batch_size


@pytest.mark.parametrize(('arg', 'source'), [('', 'python_docs'), ('beir=mine', 'beir:mine')])
def test_a_large_model_teaches_a_small_student(arg, source):
    config = configs.resolve(large_to_small.get_config(arg))
    validate(config)
    roles = config.teacher.members, config.assistants, config.align.to, config.pseudo_labels.systems
    assert {name for names in roles for name in names} == set(config.systems)
    large = {spec.weights for name, spec in config.systems.items() if name != 'bm25'}
    assert large == {large_to_small.MPNET} and config.student.weights == mta4dpr.MINILM
    assert config.student.layers == () and config.collection.source == source
    with pytest.raises(ValueError, match='has no variant .tiny.; use beir=PATH'):
        large_to_small.get_config('tiny')


def test_recipes_name_no_other_models():
    named = set()
    for arg in VARIANTS:
        config = mta4dpr.get_config(arg)
        found = [config.student, *config.systems.values()]
        named |= {entry.weights for entry in found if hasattr(entry, 'weights')}
    assert named == set(public_models.CONFIGS)


def test_the_contrastive_term_weighs_as_in_simlm_beside_all_divergences():
    for method in (mta4dpr, adam):
        config = resolved(method, 'msmarco')
        loss = config.loss
        divergences = loss.teacher + loss.dark * loss.teacher
        if config.assistants:
            divergences += loss.assistant + loss.dark * loss.assistant + loss.in_batch
        assert loss.contrastive == pytest.approx(0.2 * divergences)


def test_held_out_and_test_queries_are_those_of_the_papers():
    msmarco, nq = (resolved(mta4dpr, arg) for arg in ('msmarco', 'nq'))
    assert msmarco.collection.options['splits'] == {
        'train': 'msmarco-passage/train/judged',
        'dev': 'msmarco-passage/dev/2',
        'test': 'msmarco-passage/dev/small',
    }
    assert {'MRR@10', 'R@1000'} <= {*msmarco.measures} and msmarco.depth == 1000
    assert nq.collection.options['splits']['dev'] == 'dpr-w100/natural-questions/dev'
    assert nq.collection.options['questions'] == {'test': 'data/nq-test.qa.csv'}
    assert nq.measures == ('AnswerR@20', 'AnswerR@100')  # The test questions have answers alone.
    for config, held_out, test in ((msmarco, 4281, 6980), (nq, 6515, 3610)):
        size = corpus_size.measure(config, None, meshes.make_mesh())
        assert (size.held_out, size.test) == (held_out, test)
