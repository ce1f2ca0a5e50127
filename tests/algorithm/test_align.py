"""Alignment: which texts, which targets, and that the student comes to them."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from jdkd.algorithm import align, student, targets, topics
from jdkd.config import Config, StudentSpec
from jdkd.configs import common
from jdkd.corpus.passages import Passages
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval import vectors
from jdkd.retrieval.exact import ExactIndex
from jdkd.run import Run
from jdkd.runtime import mesh as meshes
from jdkd.systems.build import build
from jdkd.systems.dual import AsymmetricSystem, as_dual
from tests.helpers import tables, tiny, toy


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('align')
    tiny.write(home)
    toy.write_model(home / 'other', DualEncoder(toy.TRANSFORMER, 'mean', True), seed=1)
    return home


def make_run(home, workdir, **overrides):
    c = tiny.get_config(str(home))
    c.systems.other = common.encoder(f'{home}/other', query_length=8, passage_length=12)
    c.align.update(to=('other',), epochs=2.0, batch_size=48, learning_rate=1e-2)
    c.align.update(overrides)
    c.index.kind = 'exact'
    return tiny.open_run(c, workdir)


@pytest.mark.slow
def test_the_student_comes_to_its_targets(home):
    run = make_run(home, home / 'w')
    model, other = student.load(run), as_dual(build(run, 'other'))
    own = targets.EmbeddingTargets(run, model.start, [other])
    aligned = align.align(run, model, own)
    start = model.initial
    rows = np.arange(len(run.collection))
    wanted = other.passages[rows]

    def cosine(system):
        return float((system.passages[rows] * wanted).sum(-1).mean())

    assert cosine(start) < 0.5 < 0.9 < cosine(aligned)
    assert aligned.digest != start.digest
    # Its queries search the other's passages as they are.
    asymmetric = AsymmetricSystem.of('asymmetric', aligned, other)
    ranking, _ = asymmetric.rank(run.test)
    queries = aligned.queries(run.test)[:]
    expected = ExactIndex(other.passages).search(queries, run.config.depth)
    np.testing.assert_array_equal(ranking.passages, expected.passages)
    assert own.shared is other and asymmetric.digest not in (aligned.digest, other.digest)
    # Built once: the stage's parameters are read again.
    again = align.align(run, model, own)
    assert again.digest == aligned.digest
    jax.tree.map(np.testing.assert_array_equal, again.encoder.params, aligned.encoder.params)


def test_what_is_read_from_stored_embeddings_is_of_their_precision(home):
    run = make_run(home, home / 'stored')
    other = types.SimpleNamespace(name='other', digest='d')
    config = run.config.replace(index=run.config.index.replace(store='int8'))
    rounded = dataclasses.replace(run, config=config)
    found = [targets.EmbeddingTargets(r, None, [other]).inputs for r in (run, rounded)]
    assert found[0] != found[1] and found[0]['systems'] == [['other', 'd']]
    asked = []

    def stage(self, path, inputs, build):
        asked.append(inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, 'stage', stage)
        for own in (run, rounded):
            topics.keep(own, other)
    assert asked[0] != asked[1]


def test_targets_are_of_passages_as_the_student_reads_them(home):
    run = make_run(home, home / 'cut')
    other = as_dual(build(run, 'other'))
    own = targets.EmbeddingTargets(run, student.load(run).start, [other])
    spec = other.encoder.spec.replace(passage_length=5)
    short = dataclasses.replace(other.encoder, spec=spec)
    texts = list(short.layout.inputs(run.passages))
    expected = other.embed(short.tokenizer.encode(texts, 5), 'cut')
    of_queries, of_passages = own.of(run.train, 5)
    rows = np.arange(len(run.collection))
    np.testing.assert_allclose(of_passages(rows), expected, atol=1e-6)
    assert np.abs(of_passages(rows) - other.passages[rows]).max() > 0.1
    np.testing.assert_allclose(of_queries(rows[:3]), other.queries(run.train)[:3], atol=1e-6)


def test_what_targets_read_is_built_before_threads_ask_for_it(home):
    """The whole passages, too, which decide the axes."""
    run = make_run(home, home / 'threads')
    other = as_dual(build(run, 'other'))
    own = targets.EmbeddingTargets(run, student.load(run).start, [other])
    own.of(run.train, 5)
    kept = {path.name for path in (run.workdir / 'systems/other').glob('embeddings-*')}
    assert kept == {'embeddings-passages', 'embeddings-passages-5', 'embeddings-train'}


@pytest.mark.slow
def test_a_student_with_a_projection_comes_to_share_a_wider_space(home):
    wide = dataclasses.replace(toy.TRANSFORMER, hidden_size=12, intermediate_size=18)
    toy.write_model(home / 'wide', DualEncoder(wide, 'mean', True), seed=2)
    c = tiny.get_config(str(home))
    c.systems.wide = common.encoder(f'{home}/wide', query_length=8, passage_length=12)
    c.align.update(to=('wide',), epochs=2.0, batch_size=48, learning_rate=1e-2)
    c.index.kind, c.student.projection = 'exact', 12
    run = tiny.open_run(c, home / 'projected')
    model, other = student.load(run), as_dual(build(run, 'wide'))
    own = targets.EmbeddingTargets(run, model.start, [other])
    assert own.shared is other
    start, rows = model.initial, np.arange(len(run.collection))
    aligned = align.align(run, model, own)
    kernel = np.load(run.workdir / 'projection/kernel.npy')
    features, wanted = start.passages[rows][:, :8], other.passages[rows]
    # No other linear map is nearer: what is left is orthogonal to the features.
    np.testing.assert_allclose(features.T @ (features @ kernel - wanted), 0, atol=1e-2)

    def cosine(embeddings):
        return float(
            (embeddings / np.linalg.norm(embeddings, axis=1)[:, None] * wanted).sum(1).mean()
        )

    by = [cosine(x) for x in (start.passages[rows], features @ kernel, aligned.passages[rows])]
    assert by == sorted(by) and by[0] < 0.5 < 0.9 < by[2]
    assert AsymmetricSystem.of('asymmetric', aligned, other).rank(run.test)[0].passages.size
    # Another start would have another kernel.
    changed = dataclasses.replace(start, digest='other')
    with pytest.raises(ValueError, match=r'\(start differ\)'):
        align._keep_projection(run, changed, own)


def test_both_towers_begin_with_the_kernel(tmp_path):
    run = types.SimpleNamespace(workdir=tmp_path, mesh=meshes.make_mesh())
    (tmp_path / 'projection').mkdir()
    np.save(tmp_path / 'projection/kernel.npy', np.eye(2, 3))
    towers = {name: {'transformer': name, 'projection': None} for name in ('query', 'passage')}
    for name, found in align._with_projection(run, towers).items():
        assert found['transformer'] == name
        np.testing.assert_array_equal(found['projection']['kernel'], np.eye(2, 3))


def test_without_epochs_the_start_stays(home):
    run = make_run(home, home / 'none', epochs=0.0)
    model = student.load(run)
    same = align.align(run, model, targets.EmbeddingTargets(run, model.start, []))
    assert same.digest == model.initial.digest
    assert not (run.workdir / 'align').exists()


def test_each_text_is_drawn_once_an_epoch_in_batches_of_the_config(tmp_path, monkeypatch):
    config = Config(student=StudentSpec(passage_length=7), train_passage_length=6, seed=3)
    config = config.replace(align=config.align.replace(epochs=1.0, batch_size=12, to=('other',)))
    run = tables.make_run(tmp_path, config, 40, {'train': [0] * 10, 'test': [0]})
    texts = [*run.passages.texts][:39] + [run.passages.texts[0]]  # The last is a copy.
    passages = Passages.from_columns(run.collection.passage_ids, [''] * 40, texts)
    collection = dataclasses.replace(run.collection, passages=passages)
    mesh = types.SimpleNamespace(shape={'data': 1})
    run = dataclasses.replace(run, collection=collection, mesh=mesh)
    encoder = types.SimpleNamespace(model='model', params='params')
    start = types.SimpleNamespace(digest='start')
    model = types.SimpleNamespace(
        run=run,
        start=encoder,
        initial=start,
        system=lambda name, digest, encoder: (name, encoder),
    )
    own = types.SimpleNamespace(
        inputs={'other': 'd'}, of=lambda queries, length: (queries.split, length)
    )
    batches, trainings = [], []

    def make_batches(*args, **kwargs):
        batches.append((args, kwargs))
        return 'batches'

    def train_loop(run, name, out, trainer, start, *args, **kwargs):
        trainings.append((name, start(), args, kwargs))

    trainer = types.SimpleNamespace(rows='rows', init=lambda params: f'state of {params}')
    monkeypatch.setattr(align, 'make_trainer', lambda *args, **kwargs: trainer)
    monkeypatch.setattr(align, 'make_batches', make_batches)
    monkeypatch.setattr(align, 'train_loop', train_loop)
    monkeypatch.setattr(align, 'restore_encoder', lambda run, encoder, path, step: (path, step))
    aligned = align.align(run, model, own)
    # 39 texts to 10 queries: lists of a query and four passages, two in a batch of about twelve.
    (((_, _, queries, source, lists, order, rows), options),) = batches
    assert (queries, rows) == (run.train, 'rows')
    assert options == {'length': 7, 'steps': 5, 'targets': ('train', 7)}
    assert sorted(lists['query_row']) == list(range(10)) and lists['passages'].shape == (10, 4)
    assert set(lists['passages'].ravel()) == set(range(39))
    np.testing.assert_array_equal(lists['group'], lists['passages'])
    # They come as they were drawn.
    assert (order.batch_size, list(order.seed), order.shuffle) == (2, [3], False)
    np.testing.assert_array_equal(source[3]['passages'], lists['passages'][3])
    ((name, state, loaded, steps),) = trainings
    assert (name, state, loaded) == ('student_align', 'state of params', ('batches',))
    assert steps.pop('desc') == 'align student'
    assert steps == {'steps': range(5), 'planned_steps': 5, 'total_steps': 5}
    assert aligned == ('student_aligned', (run.workdir / 'align', 5))
    # It is read again, with whatever trained it gone.
    assert align.load(model) == aligned and len(trainings) == 1
    untrained = types.SimpleNamespace(**vars(model))
    untrained.run = dataclasses.replace(run, workdir=tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match='has no finished align; run jdkd train'):
        align.load(untrained)
    # What decides it, decides its stage.
    longer = config.replace(student=StudentSpec(passage_length=8))
    other = dataclasses.replace(run, config=longer)
    with pytest.raises(ValueError, match=r'\(length differ\)'):
        align.align(other, model, own)


def make_targets(model, *widths, seed=0):
    """Targets from random embeddings of 50 passages by systems of these widths."""
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=(50, width)).astype(np.float32) for width in widths]
    systems = [
        types.SimpleNamespace(
            passages=vectors.Vectors((own,)),
            cut_passages=lambda _, own=own: vectors.Vectors((own,)),
            queries=lambda _, own=own: vectors.Vectors((own,)),
            encoder=types.SimpleNamespace(
                model=make_model(own.shape[1], normalize=model.normalize)
            ),
        )
        for own in made
    ]
    run = types.SimpleNamespace(collection=range(50), config=Config())
    return targets.EmbeddingTargets(run, types.SimpleNamespace(model=model), systems), made


def of_widths(made, *dims):
    config = Config(student=StudentSpec(dims=dims))
    run = types.SimpleNamespace(collection=made.run.collection, config=config)
    return dataclasses.replace(made, run=run)


def make_model(width, *, normalize):
    transformer = types.SimpleNamespace(hidden_size=width)
    return types.SimpleNamespace(transformer=transformer, projection=None, normalize=normalize)


def test_the_projection_keeps_inner_products_best():
    made, (own,) = make_targets(make_model(6, normalize=False), 16)
    _, of_passages = made.of(None, 9)
    projected = of_passages(np.arange(50))
    assert projected.shape == (50, 6)
    error = np.linalg.norm(own @ own.T - projected @ projected.T)
    # Eckart and Young: no Gram matrix of rank 6 is nearer than the one of the leading values.
    left = np.linalg.svd(own.astype(np.float64), compute_uv=False)[6:]
    np.testing.assert_allclose(error, np.sqrt((left**4).sum()), rtol=1e-5)


def test_targets_of_several_widths_have_the_best_prefixes():
    made, (own,) = make_targets(make_model(6, normalize=False), 6)
    rows = np.arange(50)
    plain = made.of(None, 9)[1](rows)
    np.testing.assert_array_equal(plain, own)
    assert made.shared is made.systems[0]
    made = of_widths(made, 6, 2)
    rotated = made.of(None, 9)[1](rows)
    # All inner products stay, and the first two dimensions are the best Gram matrix of rank 2.
    np.testing.assert_allclose(rotated @ rotated.T, own @ own.T, atol=1e-4)
    left = np.linalg.svd(own.astype(np.float64), compute_uv=False)[2:]
    error = np.linalg.norm(own @ own.T - rotated[:, :2] @ rotated[:, :2].T)
    np.testing.assert_allclose(error, np.sqrt((left**4).sum()), rtol=1e-5)
    assert made.shared is None  # Another space.
    # Narrower targets are filled up with zeros.
    narrow = of_widths(make_targets(make_model(8, normalize=False), 6)[0], 2)
    found = narrow.of(None, 9)[1](rows)
    np.testing.assert_allclose(found[:, :6], rotated, atol=1e-5)
    assert found.shape == (50, 8) and not found[:, 6:].any()


def test_several_systems_give_the_mean_of_their_cosines():
    made, (first, second) = make_targets(make_model(10, normalize=True), 4, 3)
    of_queries, of_passages = made.of(None, 9)
    rows = np.array([[3, 7], [1, 0]])
    found = np.einsum('bd,bnd->bn', of_queries(rows[:, 0]), of_passages(rows))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    expected = sum(
        np.einsum('bd,bnd->bn', unit(own)[rows[:, 0]], unit(own)[rows]) for own in (first, second)
    )
    np.testing.assert_allclose(found, expected / 2, rtol=1e-5)
    assert of_passages(rows).dtype == np.float32
    # A narrower target leaves the student's last dimensions at 0.
    assert not of_passages(rows)[..., 7:].any()
