"""Pretrained speech models that choose their own depth, by input-driven layer dropping.

>>> import sounding
>>> dynamic = sounding.wrap(model)              # doctest: +SKIP
>>> out = dynamic(**batch, budget=3)            # doctest: +SKIP
>>> out.logits, out.executed_layers             # doctest: +SKIP
"""

from .model import DynamicModel, load, unwrap, wrap

__all__ = ["DynamicModel", "__version__", "load", "unwrap", "wrap"]
__version__ = "0.1.0"
