"""Only `figures.py` stands alone; the other files import their neighbours, which works when `run.py` is the script."""

collect_ignore = [
    "run.py",
    "networks.py",
    "rivals.py",
    "gauge.py",
    "processes.py",
    "selection.py",
    "training.py",
    "loop.py",
    "memory.py",
    "files.py",
    "features.py",
    "speech.py",
    "transducer.py",
    "waiting.py",
    "inference.py",
    "adapters.py",
    "executors.py",
    "sharded.py",
]
