"""Values: golden steps, the table of gradient weights, the oracle of loops, gradcheck, on-policy identities."""

from __future__ import annotations
