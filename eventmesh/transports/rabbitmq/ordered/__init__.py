"""Subscriptions with an order on RabbitMQ.

A subscription has partitions, each of which is a queue that delivers to one consumer at a time. The
workers of the subscription know each other (`workers`) and divide the partitions among themselves
(`assignment`). Two that disagree for a moment do no harm: the second waits until RabbitMQ has put
everything that the first held back into its place.

A worker holds the oldest messages of its partitions, unacknowledged, and hands out those whose key
is free (`mailbox`). A key is not free while some of its messages are being handled, while a retry
is not due, or while a dead letter holds it. What must outlive the worker is noted in a second queue
of the partition, its front (`notes`): which attempt a message is at and when it is due, which keys
are held, and dead letters that are replayed. Whoever takes over a partition reads all of its front
before it hands anything out (`partition`).

RabbitMQ returns the unacknowledged messages of a consumer that has gone in their order, but behind
those that were returned before. So that they come first nevertheless, each consumer takes at once
all that were returned: all workers take the same number of messages, `window`, so none can return
more than the next one takes.
"""
