"""The folder of the configs."""

from __future__ import annotations

from pathlib import Path

import ldae

_PACKAGE = Path(ldae.__file__).resolve().parent
# inside the package where it was installed from a wheel, beside it in a checkout
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
