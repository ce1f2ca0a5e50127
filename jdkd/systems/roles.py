"""Which systems a config uses, and what for."""

import ml_collections


def used(config: ml_collections.FrozenConfigDict) -> list[str]:
    """Names of the systems that a run builds, also of those that are no entries, each once."""
    names = dict.fromkeys([*retrievers(config), *config.teacher.members])
    found = list(names)
    for name in found:  # Grows: a system that mines for another may be trained itself.
        miner = _miner(config, name)
        if miner is not None and miner not in names:
            names[miner] = None
            found.append(miner)
    return found


def retrievers(config: ml_collections.FrozenConfigDict) -> list[str]:
    """Names of the systems that search the collection."""
    return [config.first_stage, *config.assistants, *config.candidates.retrievers]


def trained(config: ml_collections.FrozenConfigDict) -> dict[str, ml_collections.FrozenConfigDict]:
    """Entries of the systems that are trained from labels, by name."""
    return {name: config.systems[name] for name in used(config) if _miner(config, name) is not None}


def _miner(config: ml_collections.FrozenConfigDict, name: str) -> str | None:
    """Who mines the negatives that a system is trained with; None where it is not trained."""
    entry = config.systems.get(name)
    is_trained = entry is not None and 'train' in entry and entry.train.steps
    return entry.train.negatives_from if is_trained else None


def encoders(
    config: ml_collections.FrozenConfigDict,
) -> dict[str, ml_collections.FrozenConfigDict]:
    """Entries of the encoders that a run loads, by their field, the student's the last."""
    named = {f'systems.{name}': config.systems.get(name) for name in used(config)}
    return {
        field: entry
        for field, entry in {**named, 'student': config.student}.items()
        if entry is not None and 'weights' in entry
    }


def system_spec(
    config: ml_collections.FrozenConfigDict, name: str
) -> ml_collections.FrozenConfigDict:
    """The entry `systems.<name>`.

    Raises:
        ValueError: if there is none.
    """
    spec = config.systems.get(name)
    if spec is None:
        raise ValueError(
            f"'{name}' is no entry of config.systems; there are: {', '.join(config.systems)}."
        )
    return spec
