"""Fields of config.json that a model family spells in its own way.

Each `read_*` maps config.json to fields of `TransformerConfig`, and raises ValueError for values
that are not supported; each `write_*` is its inverse.
"""

from collections.abc import Mapping
from typing import Any

from jdkd.models.config import Disentangled, Rotary, TransformerConfig
from jdkd.runtime.messages import shown

_LAYER_TYPES = ('full_attention', 'sliding_attention')


def read_offset(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the positions of RoBERTa and MPNet: fairseq counts them from the padding id + 1."""
    offset = (1 if raw.get('pad_token_id') is None else raw['pad_token_id']) + 1
    return {
        'position_offset': offset,
        'max_positions': raw.get('max_position_embeddings', 512) - offset,
    }


def write_offset(config: TransformerConfig) -> dict[str, Any]:
    """Inverse of `read_offset`."""
    return {'max_position_embeddings': config.max_positions + config.position_offset}


def read_deberta(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Reads DeBERTa's disentangled attention."""
    terms = raw.get('pos_att_type') or ()
    terms = terms.lower().split('|') if isinstance(terms, str) else terms
    terms = tuple(sorted(term.strip() for term in terms))
    if not set(terms) <= {'c2p', 'p2c'}:
        raise ValueError(f'pos_att_type={shown(terms)}; only c2p and p2c are supported')
    if not raw.get('relative_attention'):
        raise ValueError('relative_attention=False; only true is supported')
    if raw.get('pooler_hidden_size', raw.get('hidden_size')) != raw.get('hidden_size'):
        raise ValueError(
            f'pooler_hidden_size={shown(raw["pooler_hidden_size"])}; only hidden_size is supported'
        )
    span = raw.get('max_relative_positions', -1)
    return {
        'embedding_size': raw.get('embedding_size'),
        'relative': Disentangled(
            num_buckets=max(raw.get('position_buckets', -1), 0),
            max_distance=span if span > 0 else raw.get('max_position_embeddings', 512),
            terms=terms,
            share_key=raw.get('share_att_key', False),
            norm='layer_norm' in raw.get('norm_rel_ebd', 'none').lower(),
        ),
    }


def write_deberta(config: TransformerConfig) -> dict[str, Any]:
    """Inverse of `read_deberta`."""
    relative = config.relative
    assert isinstance(relative, Disentangled)
    return {
        'relative_attention': True,
        'position_buckets': relative.num_buckets or -1,
        'max_relative_positions': relative.max_distance,
        'pos_att_type': list(relative.terms),
        'share_att_key': relative.share_key,
        'norm_rel_ebd': 'layer_norm' if relative.norm else 'none',
        'pooler_hidden_size': config.hidden_size,
        # No value of the key means "hidden_size".
        **({'embedding_size': config.embedding_size} if config.embedding_size else {}),
    }


def read_modernbert(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Reads ModernBERT's local layers and rotary positions, in old and new spellings."""
    every = raw.get('global_attn_every_n_layers', 3)
    count = raw.get('num_hidden_layers', 0)
    types = raw.get('layer_types') or [_LAYER_TYPES[bool(i % every)] for i in range(count)]
    if not set(types) <= set(_LAYER_TYPES):
        raise ValueError(
            f'layer_types={shown(types)}; only {" and ".join(_LAYER_TYPES)} are supported'
        )
    old_thetas = (
        raw.get('global_rope_theta', Rotary.theta),
        raw.get('local_rope_theta', Rotary.local_theta),
    )
    if len(types) != count:
        raise ValueError(f'layer_types has {len(types)} layers, but num_hidden_layers={count}')
    ropes = raw.get('rope_parameters') or {}
    if not ropes.keys() <= {*_LAYER_TYPES}:
        raise ValueError(f'rope_parameters={shown(ropes)}; only those of {", ".join(_LAYER_TYPES)}')
    thetas = []
    for kind, theta in zip(_LAYER_TYPES, old_thetas, strict=True):
        rope = ropes.get(kind) or {}
        if raw.get('rope_scaling') or rope.get('rope_type', 'default') != 'default':
            raise ValueError('scaled rotary positions; only the default rope_type is supported')
        thetas.append(float(rope.get('rope_theta', theta)))
    return {
        'relative': Rotary(*thetas),
        'local_layers': tuple(i for i, kind in enumerate(types) if kind == _LAYER_TYPES[1]),
        'window': raw.get('local_attention', 128) // 2,
    }


def write_modernbert(config: TransformerConfig) -> dict[str, Any]:
    """Inverse of `read_modernbert`, in the new spelling and, as far as it goes, in the old.

    transformers before version 5 knows one global layer of every so many, counted from the first.
    It fails at a 0 where layers are otherwise, instead of computing another model.
    """
    assert isinstance(config.relative, Rotary)
    thetas = (config.relative.theta, config.relative.local_theta)
    layers = range(config.num_layers)
    fits = (n + 1 for n in layers if config.local_layers == tuple(i for i in layers if i % (n + 1)))
    return {
        'global_rope_theta': thetas[0],
        'local_rope_theta': thetas[1],
        'global_attn_every_n_layers': next(fits, 0),
        'rope_parameters': {
            kind: {'rope_type': 'default', 'rope_theta': theta}
            for kind, theta in zip(_LAYER_TYPES, thetas, strict=True)
        },
        'layer_types': [_LAYER_TYPES[i in config.local_layers] for i in range(config.num_layers)],
        'local_attention': 2 * config.window,
        # The default ids would lie outside a small vocabulary.
        **{f'{role}_token_id': None for role in ('bos', 'eos', 'cls', 'sep')},
    }
