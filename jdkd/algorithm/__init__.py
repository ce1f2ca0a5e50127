"""Algorithm 1 of MTA4DPR: rounds of GenDataset, training, Compare and the update of the pool."""
