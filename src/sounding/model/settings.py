"""What `wrap` changes of a model's configuration, and puts back for a save and by `unwrap`."""

from __future__ import annotations

from typing import Any

from .outputs import FIELDS

IGNORED = "keys_to_ignore_at_inference"  # of a configuration, by `transformers.Trainer`


class NotPredicted:
    """What keeps `FIELDS` out of the predictions of `transformers.Trainer`, until `remove()`."""

    def __init__(self, config: Any) -> None:
        self.config, self.before = config, vars(config).get(IGNORED)
        self.put()

    def put(self) -> None:
        """Add `FIELDS` to what the configuration says is to be ignored."""
        setattr(self.config, IGNORED, [*getattr(self.config, IGNORED, ["cache"]), *FIELDS])

    def remove(self) -> None:
        """Restore what the configuration said before."""
        if self.before is None:
            vars(self.config).pop(IGNORED, None)
        else:
            setattr(self.config, IGNORED, self.before)


def set_layerdrop(owner: Any, rate: float | None) -> float | None:
    """Turn the encoder's own random dropping off (or back on), lest two drop layers at once."""
    holder = owner if hasattr(owner, "layerdrop") else getattr(owner, "config", owner)
    before = getattr(holder, "layerdrop", None)
    if before is not None and rate is not None:
        holder.layerdrop = rate
    return before
