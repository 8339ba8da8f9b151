"""Tools and environments: what answers the model between two turns."""

from .contract import Observation as Observation
