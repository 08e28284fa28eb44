"""Programs that the tests start with torchrun are no tests themselves."""

collect_ignore_glob = ["*.py"]
