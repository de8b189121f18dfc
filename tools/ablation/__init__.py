"""What tools/ablate.py does: reads a study, runs its cells, writes what they showed."""
