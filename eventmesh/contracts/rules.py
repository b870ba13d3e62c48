"""The rule codes of `eventmesh schema check`, and what each of them means."""

from __future__ import annotations

from types import MappingProxyType

RULES = MappingProxyType(
    {
        # Differences between a writer's schema and a reader's, found by comparing the two.
        "EM001": "the reader requires a field that the writer may leave out",
        "EM002": "the reader accepts fewer types",
        "EM003": "the reader accepts fewer enum values, or a different constant",
        "EM004": "the range of a number is narrower",
        "EM005": "the allowed length of a string is narrower",
        "EM006": "a string must match a different pattern",
        "EM007": "a string must have a different format",
        "EM008": "a number must be a multiple of a different number",
        "EM009": "the allowed length of a list is narrower, or its items must be unique",
        "EM010": "the items of a list have a different schema",
        "EM011": "a list must contain an item of a different schema",
        "EM012": "the reader rejects fields that it does not declare",
        "EM013": "the names or the number of fields are restricted further",
        "EM014": "a field is required where another field is present",
        "EM015": "the alternatives (anyOf, oneOf) changed",
        "EM016": "a condition (if, then, else, not) changed",
        "EM017": "a field was removed: the reader ignores what the writer sends in it",
        "EM018": "a field was added: the reader uses its default where the writer sends none",
        "EM019": "the reader rejects null",
        "EM020": "the reader rejects every value here",
        "EM021": "a default changed",
        "EM022": "the model rejects what its schema accepts: a validator, an alias or strict mode",
        "EM029": "another difference",
        # Versions of one message.
        "EM030": "a version has no lock file",
        "EM031": "a frozen version changed in a way that breaks a reader or a writer",
        "EM032": "a frozen version changed in a compatible way that is not frozen yet",
        "EM033": "a lock file was edited, or is not valid",
        "EM034": "a lock file was deleted or replaced since the git revision compared with",
        "EM035": "a version number was skipped",
        "EM036": "a new version cannot read the one before, and there is no upcaster",
        "EM037": "an upcaster fails on data that its version allows",
        "EM038": "an upcaster modifies its argument, or its result differs from call to call",
        "EM039": "the result of the upcasters is not a valid latest version",
        "EM040": "the default of a field differs from the version before",
        "EM041": "a downcaster fails, is not pure, or returns data that its version does not allow",
        "EM042": "the kind, name or key of a message changed within one version",
        "EM043": "a deprecated version is past its sunset date",
        "EM044": "it could be neither proved nor refuted that a change is compatible",
        # All services together.
        "EM050": "a subscriber cannot read a version that may still arrive",
        "EM051": "a service subscribes to an event that nobody publishes",
        "EM052": "a command has no handler",
        "EM053": "a command has more than one handler",
        "EM054": "a message has two owners",
        "EM055": "a service imports another service's code",
        "EM056": "services share a database without declaring it",
        "EM057": "it could be neither proved nor refuted that a subscriber can read a version",
        "EM058": "a service declares a message with another kind or key than its owner does",
        "EM059": "a service declares that it shares a database, and does not",
        # Waivers.
        "EM060": "a waiver has no reason or no expiry date, and has no effect",
        "EM061": "a waiver matches no finding",
        # Unused messages.
        "EM070": "a command has a handler, and nobody sends it",
        # Sagas.
        "EM080": "the shape of a saga differs from what is frozen of its version",
        "EM081": "a version of a saga has no lock file",
        "EM082": "the lock file of a saga was edited, or is not valid",
        "EM083": "the version of a saga was skipped, or went back",
        "EM084": "running sagas of an older version stand in a step that was removed",
        "EM085": "an answer under way to a saga of an older version is not taken any more",
        "EM086": "a step that sagas of an older version have done cannot be undone any more",
        "EM087": "the state of an older version of a saga cannot be read, and is not migrated",
        "EM088": "a running saga of an older version does not end as it should",
        "EM089": "it could be neither proved nor refuted that sagas of an older version go on",
    }
)
"""Code and meaning. A code never changes its meaning, and is not used again."""
