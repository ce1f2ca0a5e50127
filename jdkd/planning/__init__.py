"""Estimates what a run costs before it runs: compiles the step of each phase and multiplies."""
