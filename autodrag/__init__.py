"""autodrag: drag points of StyleGAN2 images to new positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autodrag.infer.editor import DragEditor

__version__ = "0.1.0"
__all__ = ["DragEditor", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the editor (and torch) on first access, so that `import autodrag` stays fast."""
    if name == "DragEditor":
        from autodrag.infer.editor import DragEditor

        return DragEditor
    raise AttributeError(f"module 'autodrag' has no attribute {name!r}")
