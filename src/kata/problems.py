"""What can stop the work, in words for `juju status`.

A problem is raised where it is found and shown where Juju can see it. Its message is one line. It
names the option or the file, the value, what was expected and what to do about it.
"""


class Problem(Exception):
    """Something that keeps the node from its desired state."""


class Blocked(Problem):
    """The operator must act: nothing changes until then."""


class Waiting(Problem):
    """Somebody else must act or come back: the next event tries again."""
