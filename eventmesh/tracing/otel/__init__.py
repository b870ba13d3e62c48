"""Tells OpenTelemetry of a message's way; the only package that imports it. Only its API is needed:
the application brings the SDK.

Whether anything is recorded depends on whether the application has configured a provider. That is
looked up once a second until there is one, and until then nothing else is done.

A batch is sampled as a whole, because asking the sampler for each message would cost more than the
rest: if the receive span is not recorded, neither are the process spans below it, nor what their
handlers create. Contexts are passed on all the same, marked as not sampled. Links are added to a
span once it is known to be recorded, for the same reason.

- contexts: the context of a message's creation, as the message carries it
- signals: the tracer, the instruments and the logger of the application's providers
- recorder: what the spans of one service have in common
- producing, consuming: the spans of publishing, and of a subscription
- tracing: both, behind the port
"""
