"""DO: one file per kind of pruning run, all of them stages of job.py's."""
