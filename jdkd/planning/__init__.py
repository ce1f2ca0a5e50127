"""What a run costs, before it runs: each stage's step compiled for a topology, and multiplied."""
