"""The Lua scripts that run inside Redis, for what must happen in one step.

Redis runs a script without anything in between, so each one sees a consistent state and leaves one.
But Redis does not undo what a script has written when a later command fails. So whatever can fail
comes first: a script that moves an entry starts with a command that writes to the same keys and
changes nothing, such as the deletion of an entry that cannot exist (0-0). It fails if a key has
another type, our user may not write it, replicas are missing or the disk is full; and once a script
has written, Redis no longer denies it memory. Then the script adds the new entry before it removes
the old one: if it fails in between after all, a message is there twice, but never lost.

Each script lists its KEYS and ARGV. `group` is the consumer group of a subscription, `consumer` the
name of a consumer in it, and `returned` the consumer under whose name entries are pending that a
leaving consumer did not settle. Times are the Redis server's, so workers' clocks need not agree.
"""
