"""`grpokit compare`: variants of a run over paired seeds, and what the runs tell apart.

`variants.py` makes the variants, `plan.py` their runs, `jobs.py` trains them, `outcome.py` reads what they have written,
`statistics.py` tests it, `summary.py` says it, and `page.py` shows it. Importing this imports nothing heavy.
"""
