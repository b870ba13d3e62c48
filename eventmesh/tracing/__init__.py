"""What OpenTelemetry is told of a message's way, by its messaging conventions 1.45.

- place: what the conventions call the broker, and what is published to and consumed from
- conventions: the names and attributes of spans and metrics, as pure functions
- port: what the runtime tells, and what is told where nothing is recorded
- otel: tells OpenTelemetry; the only module that imports it
- loading: which of the two a process uses

This is a low floor, because a message is created in `persistence`, also in a program that has no
worker, such as a web application.

    create  one for each message; its context travels with the message as `traceparent`
    send    one for each batch that a relay publishes; links to each message's create span
    receive one for each batch that a lane takes from the broker; links likewise
    process one for each call of a handler, below the receive span; links likewise
    settle  one for each batch whose outcomes the broker is told, below the receive span

So what a handler publishes is created below its process span, and its readers link to that. With
`EVENTMESH_TRACE_PARENTS`, the process span of a single message is below its create span instead,
so that one trace tells the whole story.
"""
