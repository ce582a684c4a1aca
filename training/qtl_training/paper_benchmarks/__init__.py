"""The paper's benchmarks: published question files asked through the real path, and scored as published.

``benchmark`` says what all have in common, ``layout`` reads their files, ``run`` asks and resumes,
``answers`` is the file of answers; every other file is one benchmark or what it is scored by.
``docs/benchmarks.md`` says which files go where.
"""
