"""Keeps TFDS from importing the modules that a dataset's files name."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import tensorflow_datasets as tfds

from jdkd.runtime.messages import shown

_Feature = tfds.features.FeatureConnector


class ForeignClassError(ValueError):
    """A dataset names a class that is not TFDS's own."""


@contextlib.contextmanager
def only_own(dataset: str) -> Iterator[None]:
    """Lets TFDS open a dataset only with features of its own, while the context lasts.

    features.json and dataset_info.json name the class of each feature. TFDS imports the module of a
    class that it does not know, and so runs whatever code a dataset names.

    Args:
        dataset: The dataset, for the message.

    Raises:
        ForeignClassError: if the files name another class; nothing has been imported then.
    """
    known, find = _Feature._registered_features, _Feature.cls_from_name

    def find_own(name: str) -> type:
        if not name.startswith('tensorflow_datasets.') or name not in known:
            raise ForeignClassError(
                f"{dataset} names the feature class {shown(name)}, which is not TFDS's own; jdkd "
                'never imports what data names: prepare the dataset with tfds.features.'
            )
        return find(name)

    with mock.patch.object(_Feature, 'cls_from_name', find_own):
        yield
