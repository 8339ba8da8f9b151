"""Tools and environments: what answers the model between two turns."""

from ..types import NoRoom as NoRoom
from .contract import Observation as Observation
