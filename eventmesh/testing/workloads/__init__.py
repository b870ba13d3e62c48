"""Hypothesis strategies of messages: `from_message(OrderPlaced)` and `samples(OrderPlaced)`.

    @given(from_message(OrderPlaced, quantity=st.integers(1, 10)) | samples(OrderPlaced))
    def test_that_every_order_gets_points(event: OrderPlaced) -> None: ...

What they generate is what may arrive: documents of the message's frozen schema, read by the model.
This package needs Hypothesis, which `pip install "eventmesh[testing]"` installs.
"""

try:
    from eventmesh.testing.workloads.messages import from_message, samples
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ModuleNotFoundError(
        "eventmesh.testing.workloads needs hypothesis: pip install 'eventmesh[testing]'.",
        name="hypothesis",
    ) from None

__all__ = ["from_message", "samples"]
