"""The codes of everything that `eventmesh schema check` can find, and what each stands for."""

from __future__ import annotations

from types import MappingProxyType

RULES = MappingProxyType(
    {
        # What differs between a writer's schema and a reader's: found by comparing them.
        "EM001": "the reader requires a field that the writer may leave out",
        "EM002": "the reader takes fewer types",
        "EM003": "the reader takes fewer values of an enumeration, or another constant",
        "EM004": "a number is bounded more narrowly",
        "EM005": "a text is bounded more narrowly in its length",
        "EM006": "a text must match another pattern",
        "EM007": "a text must have another format",
        "EM008": "a number must be a multiple of another number",
        "EM009": "a list is bounded more narrowly in its length, or must be without repetition",
        "EM010": "the entries of a list must be something else",
        "EM011": "a list must contain something else",
        "EM012": "the reader refuses fields that it does not name",
        "EM013": "the names or the number of fields are bounded more narrowly",
        "EM014": "a field that depends on another is asked for",
        "EM015": "the alternatives (anyOf, oneOf) are others",
        "EM016": "a condition (if, then, else, not) is another",
        "EM017": "a field is gone: what is written there is not read",
        "EM018": "a field is new: it is read where it is written, and has its default elsewhere",
        "EM019": "null is refused",
        "EM020": "the reader refuses everything here",
        "EM021": "a default changed",
        "EM022": "the model refuses what its schema accepts: a validator, an alias or strictness",
        "EM029": "something else differs",
        # Versions of one message.
        "EM030": "a version has no lock file",
        "EM031": "a frozen version was changed in a way that breaks a neighbour",
        "EM032": "a frozen version was changed in a compatible way that is not recorded yet",
        "EM033": "a lock file was edited, or cannot be read",
        "EM034": "a lock file is gone, or is another one, since the revision compared with",
        "EM035": "a version was skipped",
        "EM036": "a new version breaks the one before, and there is no upcaster",
        "EM037": "an upcaster fails on data that its version allows",
        "EM038": "an upcaster changes the data that it is given, or answers differently each time",
        "EM039": "what the upcasters end in is not the latest model",
        "EM040": "a default changed its meaning",
        "EM041": "a downcaster fails, is impure, or ends in data that its version does not allow",
        "EM042": "a message's kind, name or key is another within one version",
        "EM043": "a deprecated version is past its sunset",
        "EM044": "it could be neither proved nor refuted that a change is compatible",
        # The whole mesh.
        "EM050": "a subscriber cannot read a version that may still arrive",
        "EM051": "nobody publishes what a service subscribes to",
        "EM052": "a command has no handler",
        "EM053": "a command has more than one handler",
        "EM054": "a message has two owners",
        "EM055": "a service imports another service's code",
        "EM056": "services share a database without saying so",
        "EM057": "it could be neither proved nor refuted that a subscriber can read a version",
        "EM058": "a message is of another kind, or has another key, for its subscriber",
        "EM059": "a declaration to share a database names what is not so",
        # Waivers.
        "EM060": "a waiver lacks its reason or its day, and silences nothing",
        "EM061": "a waiver is for nothing that was found",
        # What nobody uses.
        "EM070": "a command has a handler, and nobody sends it",
    }
)
"""Code and meaning. A code is never given a second meaning."""
