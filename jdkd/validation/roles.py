"""Checks the roles that a config gives to systems, and sizes that must agree."""

import itertools
import math
import re
from collections.abc import Iterator

from jdkd.config import Config, EncoderSpec, LLMSpec
from jdkd.distillation import objective
from jdkd.runtime.messages import brief
from jdkd.systems.roles import aligned_with, miner_of, retrievers, trained, used


def errors(config: Config) -> Iterator[str]:
    """Errors of fields that do not fit together."""
    systems = config.systems
    splits = {f: getattr(config.collection, f) for f in ('train_split', 'eval_split', 'test_split')}
    for field, name in splits.items():
        if name == '':
            yield f"collection.{field} is ''; name a split."
        if re.fullmatch('passages(-.*)?', name or ''):
            yield (
                f"collection.{field} is '{brief(name)}', as the files of passages are called in a "
                'workdir; give the split another name.'
            )
    for a, b in itertools.combinations(splits, 2):
        if splits[a] == splits[b] is not None:
            yield (
                f"collection.{a} and collection.{b} are both '{brief(splits[a])}'; name different "
                'splits: what is trained on, chosen by or tested on must not be the same queries.'
            )
    for name in systems:
        if not re.fullmatch(r'[\w.-]+', name) or re.match(r'(student|teacher|twin)', name):
            yield (
                f"'{name}' cannot name a system: names are letters, digits, '-', '_' and '.', and "
                "do not begin with 'student', 'teacher' or 'twin', which reports use."
            )
    for name in used(config):
        if name not in systems:
            yield f"'{name}' is no entry of config.systems; there are: {', '.join(systems)}."
    roles = {
        'assistants': config.assistants,
        'teacher.members': config.teacher.members,
        'align.to': config.align.to,
        'pseudo_labels.systems': config.pseudo_labels.systems,
    }
    for field, names in roles.items():
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"{field} names '{twice[0]}' more than once; once is enough."
    if not config.teacher.members:
        yield 'teacher.members is empty; name at least one system.'
    yield from _kind_errors(config)
    weights = config.teacher.weights
    if weights is not None and len(weights) != len(config.teacher.members):
        yield (
            f'teacher.weights={weights} does not give one weight for each of teacher.members='
            f'{config.teacher.members}.'
        )
    if weights is not None and not all(map(math.isfinite, weights)):
        yield f'teacher.weights={weights} must be finite numbers.'
    if config.student.kind != 'dual_encoder':
        yield "student.kind must be 'dual_encoder'."
    if config.student.scale is None:
        yield 'student.scale is not set; give the inverse temperature of its scores, such as 20.'
    if config.student.projection is not None and config.student.freeze == 'passage':
        yield (
            "student.freeze='passage' keeps passages where they are, and student.projection brings "
            "them to another space; set freeze='none', or leave projection out."
        )
    dims = config.student.dims
    if any(not isinstance(dim, int) or dim < 1 for dim in dims) or len(set(dims)) < len(dims):
        yield f'student.dims={dims} must be different whole numbers, each at least 1.'
    if not config.loss.contrastive and not objective.distils(config):
        yield (
            'no term of the loss has a weight; set loss.contrastive, teacher, embedding or pool, '
            'or assistants with loss.assistant or loss.in_batch.'
        )
    if not config.rounds and not config.align.epochs:
        yield 'rounds=0 and align.epochs=0 train nothing; raise one of them.'
    if config.twin and config.collection.test_split is None:
        yield 'twin is compared on test queries, and collection.test_split=None; set twin=False.'
    if config.twin and not config.rounds:
        yield 'twin learns in rounds, and rounds=0; raise it, or set twin=False.'
    if config.twin and not config.loss.contrastive:
        yield 'twin needs labels to learn from; set loss.contrastive, or twin=False.'
    yield from size_errors(config)


def _kind_errors(config: Config) -> Iterator[str]:
    """Errors of systems in roles that their kind cannot fill."""
    kinds = {name: spec.kind for name, spec in config.systems.items()}
    for name in dict.fromkeys(retrievers(config)):
        if kinds.get(name) == 'cross_encoder':
            yield (
                f"system '{name}' is a cross-encoder and cannot search a collection; use it in "
                'teacher.members, not in assistants, first_stage or candidates.retrievers.'
            )
    yield from _pseudo_label_errors(config)
    aligns = config.align.epochs or config.loss.embedding
    if aligns and not config.align.to:
        yield 'align.to is empty; name the dual-encoders whose embeddings the student learns.'
    if config.loss.pool and not config.candidates.hardest:
        yield 'loss.pool needs scored passages, and candidates.hardest=0 scores none; raise it.'
    if aligned_with(config) and config.index.store == 'binary':
        yield (
            "index.store='binary' keeps signs alone, and the student learns the embeddings of "
            "align.to; set index.store='int8', or align.epochs=0 and loss.embedding=0."
        )
    for name in aligned_with(config):
        if kinds.get(name, 'dual_encoder') != 'dual_encoder':
            yield (
                f"align.to names '{name}', which is of kind {kinds[name]} and has no embeddings to "
                'learn; name a dual_encoder.'
            )
        elif config.student.freeze == 'passage' and not _keeps_space(config, name):
            yield (
                "student.freeze='passage' keeps passages where the student's start has them, and "
                f"align.to brings queries to the space of '{name}'; name one system of the same "
                'checkpoint as it comes, without student.dims, or set align.epochs=0 and '
                'loss.embedding=0.'
            )
    for name in used(config):
        miner = miner_of(config, name)
        if miner is not None and kinds.get(miner) == 'cross_encoder':
            yield (
                f'systems.{name}.train.negatives_from names the cross-encoder {miner!r}, which '
                'cannot search a collection; name a retriever, for example bm25.'
            )
        if miner is not None and kinds.get(miner) == 'llm':
            yield (
                f'systems.{name}.train.negatives_from names the language model {miner!r}, which '
                're-ranks for what is trained already; name a retriever, for example bm25.'
            )
        chain = [name]
        while miner is not None and miner not in chain:
            chain.append(miner)
            miner = miner_of(config, miner)
        if miner == name:
            yield (
                f'systems.{name}.train.negatives_from goes round in a circle '
                f'({" <- ".join([*chain, name])}); let one of them mine with bm25.'
            )
    yield from _llm_errors(config)
    for name in dict.fromkeys([*config.teacher.members, *config.assistants]):
        if kinds.get(name) != 'scores':
            continue
        if config.dark.reinforced + config.dark.noisy:
            yield (
                f"system '{name}' has imported scores and cannot score dark examples, which are "
                'new text; set dark.reinforced=0 and dark.noisy=0, or take it out of '
                'teacher.members and assistants.'
            )
        if name in config.assistants and config.loss.in_batch:
            yield (
                f"assistant '{name}' has imported scores, which do not reach beyond a query's own "
                'list; set loss.in_batch=0, or take it out of assistants.'
            )


def _pseudo_label_errors(config: Config) -> Iterator[str]:
    """Errors of the systems that give pseudo-labels."""
    for name in config.pseudo_labels.systems:
        spec = config.systems.get(name)
        if spec is None:  # Another error says so.
            continue
        if spec.kind not in ('bm25', 'dual_encoder'):
            yield (
                f"pseudo_labels.systems names '{name}', which is of kind {spec.kind} and searches "
                'no collection; name bm25 or a dual_encoder.'
            )
        elif name in trained(config):
            yield (
                f"pseudo_labels.systems names '{name}', which is trained from the labels that it "
                f'would give; set systems.{name}.train.steps=0, or name another system.'
            )
    if config.pseudo_labels.systems and config.candidates.stand_ins < 2:
        yield (
            'candidates.stand_ins=1 leaves pseudo-labels no second passage to lead; raise it, or '
            'set pseudo_labels.systems=().'
        )


def _llm_errors(config: Config) -> Iterator[str]:
    """Errors of language models in roles that they cannot fill."""
    for name in used(config):
        spec = config.systems.get(name)
        if not isinstance(spec, LLMSpec):
            continue
        if name == config.first_stage:
            yield (
                f"first_stage names the language model '{name}', which re-ranks the first stage "
                'and cannot be it; name a retriever, for example bm25.'
            )
        elif name in retrievers(config) and not spec.depth:
            yield (
                f"system '{name}' is a language model and ranks no collection; set systems.{name}."
                'depth to the passages of first_stage that it re-ranks, or use it in '
                'teacher.members alone.'
            )
        elif name in retrievers(config) and spec.depth > config.depth:
            yield (
                f'systems.{name}.depth={spec.depth} re-ranks more than the {config.depth} passages '
                'that are kept of a ranking (depth); lower it, or raise depth.'
            )
        if name in config.assistants and config.loss.in_batch:
            yield (
                f"assistant '{name}' is a language model, which a batch's queries and passages are "
                'too many for; set loss.in_batch=0, or take it out of assistants.'
            )
        if not spec.listwise.window:
            continue
        if spec.listwise.step > spec.listwise.window:
            yield (
                f'systems.{name}.listwise.step={spec.listwise.step} leaves passages between '
                f'windows of {spec.listwise.window}; lower it to at most that.'
            )
        if name in config.teacher.members and config.candidates.hardest:
            yield (
                f"member '{name}' of the teacher ranks each list by itself (listwise.window), and "
                'candidates.hardest compares scores of different lists; set one of them to 0.'
            )
        first = config.systems.get(config.first_stage)
        if first is not None and first.kind == 'scores':
            yield (
                f"system '{name}' ranks windows (listwise.window) that begin with the order of "
                f"first_stage, and '{config.first_stage}' has imported scores of some pairs alone; "
                'name another first_stage, for example bm25.'
            )


def _keeps_space(config: Config, name: str) -> bool:
    """Whether alignment with a system leaves queries in the space of the student's start."""
    student = config.student
    same = ('weights', 'revision', 'layers', 'hidden_size', 'pooling', 'normalize')
    spec = config.systems.get(name)
    return (
        isinstance(spec, EncoderSpec)
        and all(getattr(spec, field) == getattr(student, field) for field in same)
        and not spec.train.steps
        and len(config.align.to) == 1
        and not student.dims  # They turn the space onto its axes.
    )


def size_errors(config: Config) -> Iterator[str]:
    """Errors of lengths and numbers that do not agree."""
    candidates = config.candidates
    if config.train_passage_length > config.student.passage_length > 0:
        yield (
            f'train_passage_length={config.train_passage_length} is more than the student encodes, '
            f'student.passage_length={config.student.passage_length}; lower it.'
        )
    longest = 'train_passage_length', config.train_passage_length
    if config.align.epochs:  # It reads whole passages.
        longest = 'student.passage_length', config.student.passage_length
    if 0 < config.rows.shared < longest[1]:
        yield (
            f'rows.shared={config.rows.shared} does not hold the longest passage in training, '
            f'{longest[0]}={longest[1]}; raise it, or lower that.'
        )
    fine_tuning = {f'systems.{name}.train': spec.train for name, spec in trained(config).items()}
    for field, owner in {'candidates': candidates, **fine_tuning}.items():
        if owner.depth > config.depth:
            yield (
                f'{field}.depth={owner.depth} is more than is kept of a ranking, '
                f'depth={config.depth}; raise that.'
            )
        # The student mines too.
        miners = len(set(retrievers(config))) + 1 if owner is candidates else 1
        if owner.hard_negatives > miners * owner.depth:
            yield (
                f'{field}.hard_negatives={owner.hard_negatives} is more than the {owner.depth} '
                f'passages ({field}.depth) of each of {miners} rankings; raise that depth.'
            )
    for field in ('hardest', 'scored') if candidates.hardest else ():
        if getattr(candidates, field) < candidates.hard_negatives:
            yield (
                f'candidates.{field}={getattr(candidates, field)} is less than candidates.'
                f'hard_negatives={candidates.hard_negatives}, and random passages would fill the '
                'lists; raise it.'
            )
    if config.fit_floor >= math.log(1 + candidates.hard_negatives):
        yield (
            f'fit_floor={config.fit_floor} is no less than the cross-entropy of a teacher that '
            f'knows nothing of 1 + candidates.hard_negatives={candidates.hard_negatives} passages; '
            'lower it.'
        )
    trainings = [('optimizer', config.optimizer, 'steps_per_round', config.steps_per_round)]
    trainings += [(name, own, f'{name}.steps', own.steps) for name, own in fine_tuning.items()]
    for field, training, length, steps in trainings:
        if training.total_steps < 1 <= config.rounds:
            yield f'{field}.total_steps={training.total_steps} must be at least 1.'
        cycle = training.cycle_steps or training.total_steps
        if training.warmup_steps >= cycle:
            yield (
                f'{field}.warmup_steps={training.warmup_steps} leaves nothing of the {cycle} steps '
                'from warm-up to rate 0; lower it.'
            )
        if training.accumulate >= 1 and steps % training.accumulate:
            yield (
                f'{field}.accumulate={training.accumulate} does not divide {length}={steps}, which '
                'would end between two updates; change one of them.'
            )
