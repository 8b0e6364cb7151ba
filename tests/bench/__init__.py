"""What the charm costs, each figure beside a yardstick of the same run.

    make bench            everything, as docs/performance.md explains it
    python -m tests.bench --rounds 3 hooks edit

`rows` is what a figure is, `meter` takes the time of commands in turn, `private` lends a root file
system in which the charm can do as it likes. Each other file measures one subject and prints rows.
"""
