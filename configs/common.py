"""Builds the ConfigDicts that the other configs fill in.

`jdkd/config/fields.py`, with `method.py` and `systems.py` beside it, declares every field, with its
default, range and comment.
"""

import ml_collections

from jdkd.config import fields, schema, systems


def encoder(weights: str, revision: str | None = None, **overrides) -> ml_collections.ConfigDict:
    """A config entry for a dual-encoder or cross-encoder."""
    return _fill(systems.EncoderSpec(), weights, revision, **overrides)


def student(weights: str, revision: str | None = None, **overrides) -> ml_collections.ConfigDict:
    """The config entry for the student."""
    return _fill(systems.StudentSpec(), weights, revision, **overrides)


def _fill(
    spec: systems.EncoderSpec, weights: str, revision: str | None, **overrides
) -> ml_collections.ConfigDict:
    c = schema.to_config_dict(spec)
    c.train.total_steps = c.train.get_oneway_ref('steps')
    c.update(weights=weights, revision=revision, **overrides)
    return c


def bm25() -> ml_collections.ConfigDict:
    """A config entry for BM25."""
    return schema.to_config_dict(systems.BM25Spec())


def scores(path: str) -> ml_collections.ConfigDict:
    """A config entry for scores made elsewhere."""
    return schema.to_config_dict(systems.ScoresSpec(path=path))


def llm(base_url: str, model: str, **overrides) -> ml_collections.ConfigDict:
    """A config entry for a language model behind an OpenAI-compatible endpoint."""
    c = schema.to_config_dict(systems.LLMSpec(base_url=base_url, model=model))
    c.update(overrides)
    return c


def get_config() -> ml_collections.ConfigDict:
    """Everything but the collection, the systems and the student."""
    c = schema.to_config_dict(fields.Config())
    c.student = ml_collections.ConfigDict()
    c.optimizer.cycle_steps = c.get_oneway_ref('steps_per_round')
    c.optimizer.total_steps = c.get_ref('rounds') * c.get_ref('steps_per_round')
    return c


def get_eval_config() -> ml_collections.ConfigDict:
    """A zero-shot evaluation, with BM25 beside the model."""
    c = schema.to_config_dict(fields.EvalConfig())
    c.systems.bm25 = bm25()
    return c
