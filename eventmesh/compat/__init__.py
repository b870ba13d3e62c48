"""Whether what one schema allows to be written is accepted by another: a proof, or a document."""

from eventmesh.compat.compare import accepts, compare, documents
from eventmesh.compat.verdict import Breaking, Change, Compatible, Unknown, Verdict

__all__ = [
    "Breaking",
    "Change",
    "Compatible",
    "Unknown",
    "Verdict",
    "accepts",
    "compare",
    "documents",
]
