"""Which systems a config uses, and what for."""

from jdkd.config import Config, EncoderSpec, SystemSpec


def used(config: Config) -> list[str]:
    """Names of the systems that a run builds, also of those that are no entries, each once."""
    names = dict.fromkeys([*retrievers(config), *config.teacher.members])
    found = list(names)
    for name in found:  # Grows: a system that mines for another may be trained itself.
        miner = _miner(config, name)
        if miner is not None and miner not in names:
            names[miner] = None
            found.append(miner)
    return found


def retrievers(config: Config) -> list[str]:
    """Names of the systems that search the collection."""
    return [config.first_stage, *config.assistants, *config.candidates.retrievers]


def trained(config: Config) -> dict[str, EncoderSpec]:
    """Entries of the systems that are trained from labels, by name."""
    return {name: config.systems[name] for name in used(config) if _miner(config, name) is not None}


def _miner(config: Config, name: str) -> str | None:
    """Who mines the negatives that a system is trained with; None where it is not trained."""
    entry = config.systems.get(name)
    is_trained = isinstance(entry, EncoderSpec) and entry.train.steps
    return entry.train.negatives_from if is_trained else None


def encoders(
    config: Config,
) -> dict[str, EncoderSpec]:
    """Entries of the encoders that a run loads, by their field, the student's the last."""
    named = {f'systems.{name}': config.systems.get(name) for name in used(config)}
    return {
        field: entry
        for field, entry in {**named, 'student': config.student}.items()
        if isinstance(entry, EncoderSpec)
    }


def system_spec(config: Config, name: str) -> SystemSpec:
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
