"""An observer for ticketkit: the rounds of every run in TensorBoard, one folder for each run.

It writes only where the user says so: into the folder that `TICKETKIT_TENSORBOARD_DIR` names when a run begins, or that
`TensorBoard(folder)` was given. A run with a run directory names its folder there, in `tensorboard.json`, and goes on
in it after an interruption; without one every run is a new one.
"""

from ticketkit_tensorboard.hooks import TensorBoard, observer

__all__ = ["TensorBoard", "observer"]
