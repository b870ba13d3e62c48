"""Proves that a saga comes to an end, whatever happens: `eventmesh saga verify`.

Rooms, from the bottom up: `twin` (the saga without its author's functions), `world` (a saga and all
that surrounds it), `rules` (the production transition, remembered), `moves` (what may happen next),
`properties` (what must hold), `keys` (which worlds are the same), `exploration` (visits them all),
`story` and `report` (what is said about it). `versions` walks a change of versions by records.
"""

from eventmesh.saga.verify.exploration import Bounds as Bounds
from eventmesh.saga.verify.report import Report as Report
from eventmesh.saga.verify.report import verify as verify
