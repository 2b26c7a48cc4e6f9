"""What a lifetime counter may do (docs/numbers.md). Pure: times and state come from the caller.

Home Assistant takes any fall of a `total_increasing` sensor by more than a tenth for a reset and counts the whole
new value as energy of that hour; it believes every rise. So a reading that can't be true is held, and the last good
value stays: until the reading is back, or until it has proved itself, when its step is taken out by an offset.
"""

from bridge.counters.account import WRAP, Account, Cause, Held, Kind, Limits, Verdict
from bridge.counters.judge import advance
from bridge.counters.ledger import Event, Guarded, Ledger, is_counter, usual_cap

__all__ = [
    "WRAP",
    "Account",
    "Cause",
    "Event",
    "Guarded",
    "Held",
    "Kind",
    "Ledger",
    "Limits",
    "Verdict",
    "advance",
    "is_counter",
    "usual_cap",
]
