"""RabbitMQ as a transport, by AMQP 0-9-1. The modules, from the bottom up:

- text, headers, truncation: what is written on a message, and how it is made to fit
- topology, declaring: exchanges, queues and bindings
- received, frames: what RabbitMQ sends, read before the client library sees it
- messages, publishing: batches of messages, published with confirms
- connection: a connection that is opened again after a loss
- held_messages, inspection: taking messages out of queues, and looking into queues
- settlement, consumer: what an outcome means, and consuming a subscription
- rerouting, upkeep: repairing what somebody deleted on the broker
- census, unrouted, dead_letters: what the command line shows and changes
- transport: all of that behind the protocol of transports
"""
