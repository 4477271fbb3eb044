"""Starts, watches and restarts the workers of `hooke run`; `launcher` is where to begin reading. No torch at import."""

from hooke.launch.launcher import launch
from hooke.launch.request import LaunchError, Request

__all__ = ["LaunchError", "Request", "launch"]
