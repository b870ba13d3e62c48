from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eventmesh.transports.redis.publishing import needs_script
from eventmesh.wire.envelope import Envelope

NAMES, KEYS = ("paid", "failed", "refunded"), ("", "a", "b", "c")
envelopes = st.lists(
    st.builds(
        lambda name, key, attribute: Envelope(
            {"type": name, attribute: key} if key else {"type": name}, b""
        ),
        st.sampled_from(NAMES),
        st.sampled_from(KEYS),
        st.sampled_from(["partitionkey", "subject"]),
    )
)


@given(envelopes)
def test_a_batch_needs_a_script_if_a_key_has_messages_for_several_streams(
    batch: list[Envelope],
) -> None:
    pairs = [(one, other) for one in batch for other in batch if one.key == other.key]
    differ = any(one.name != other.name for one, other in pairs if one.key is not None)
    assert needs_script(batch) == differ
