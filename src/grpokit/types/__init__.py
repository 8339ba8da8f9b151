"""The nouns of the library: what travels from one stage of training to the next."""

from .episode import Episode as Episode
from .episode import EpisodeFailed as EpisodeFailed
from .episode import NoRoom as NoRoom
from .metric import FORMULAS as FORMULAS
from .metric import Metric as Metric
from .metric import MetricKind as MetricKind
from .metric import Metrics as Metrics
from .metric import join_metrics as join_metrics
from .nouns import SAMPLED as SAMPLED
from .nouns import ExpertUse as ExpertUse
from .nouns import Layout as Layout
from .nouns import LossOutput as LossOutput
from .nouns import Messages as Messages
from .nouns import MicroBatch as MicroBatch
from .nouns import Prefix as Prefix
from .nouns import Prompt as Prompt
from .nouns import Rollout as Rollout
from .nouns import RolloutGroup as RolloutGroup
from .nouns import Sample as Sample
from .nouns import TokenScores as TokenScores
from .nouns import Update as Update
