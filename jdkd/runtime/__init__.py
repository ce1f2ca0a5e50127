"""What a run needs around the method: mesh, checkpoints, stages, logs, report."""
