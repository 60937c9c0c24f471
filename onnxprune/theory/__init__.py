"""SAY beforehand: norms, moments and theorems, and what they promise of a model before anything is pruned."""
