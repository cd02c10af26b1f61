"""Arms and their answers: generation, traces, sweeps, side effects. Imports methods, gates, reading and below."""
