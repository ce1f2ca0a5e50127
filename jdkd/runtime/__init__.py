"""Infrastructure of a run: mesh, processes, stages, checkpoints, files, metrics, interrupts."""
