"""What every transport guarantees, as functions that an author of a transport can run.

Each guarantee takes a `Rig`, uses only the protocol of `eventmesh.transports.base`, and raises
GuaranteeBroken with what it saw. Bind `GUARANTEES` to a test framework of your choice:

    @pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
    async def test_mine(guarantee):
        @asynccontextmanager
        async def connect(visibility_timeout):
            transport = MyTransport(URL, visibility_timeout)
            await transport.connect()
            try:
                yield transport
            finally:
                await transport.close()

        try:
            await guarantee(Rig(connect, restart=..., lose_data=..., cut=..., refuse=...))
        except NotApplicable as reason:
            pytest.skip(str(reason))

A rig should have all that can be done to its broker: a guarantee that lacks what it needs is
NotApplicable, which proves nothing. `eventmesh.testing.servers.serve_controlled` has servers to
restart, a TCP proxy cuts connections. A transport that other processes can reach by
`eventmesh.transports.factory` gives `url` and `prefix`; then consumers die by SIGKILL instead of
by leaving.

Names are unique to each rig, so that a broker may be shared; but what is done to it reaches all who
use it. With a broker on the same machine the whole takes about half a minute, and the time of two
restarts.
"""

from eventmesh.testing.conformance.consuming import (
    a_killed_consumer_gives_up_its_deliveries,
    a_slow_consumer_keeps_its_deliveries,
    deaths_are_counted,
    prefetch_counts_all_messages_of_a_subscription,
    prefetch_is_a_bound,
    receive_can_be_cancelled,
    unsettled_goes_back_on_leaving,
    what_was_not_handed_out_does_not_count,
)
from eventmesh.testing.conformance.counting import (
    a_census_counts_what_is_there,
    a_census_disturbs_nobody,
)
from eventmesh.testing.conformance.delivering import (
    backlog_before_the_first_consumer,
    backlog_before_the_first_subscription,
    competing_consumers,
    fan_out,
    order_for_one_consumer,
    order_within_a_key_survives_a_stop,
    round_trip,
)
from eventmesh.testing.conformance.failing import (
    a_closed_transport_says_so,
    a_cut_connection_is_made_anew,
    a_restarted_broker_has_everything,
    closing_ends_what_waits,
    lost_topology_is_made_again,
    topology_lost_while_running_is_restored,
)
from eventmesh.testing.conformance.keeping import (
    unrouted_messages_are_listed_kept_and_purged,
    what_was_kept_for_a_first_subscription_comes_once,
)
from eventmesh.testing.conformance.publishing import (
    a_refusal_leaves_the_rest,
    batches_of_any_size,
    many_tasks_share_a_transport,
    nothing_overtakes_what_is_refused,
)
from eventmesh.testing.conformance.rig import Guarantee, GuaranteeBroken, NotApplicable, Rig
from eventmesh.testing.conformance.settling import (
    dead_letters_are_kept,
    delayed_retry,
    delays_do_not_block_each_other,
    one_letter_for_each_message,
    settled_is_gone,
    settling_is_always_possible,
    settling_out_of_order,
    settling_twice_is_harmless,
    stats_count_what_is_there,
)

GUARANTEES: tuple[Guarantee, ...] = (
    round_trip,
    fan_out,
    order_for_one_consumer,
    order_within_a_key_survives_a_stop,
    competing_consumers,
    backlog_before_the_first_consumer,
    backlog_before_the_first_subscription,
    batches_of_any_size,
    a_refusal_leaves_the_rest,
    nothing_overtakes_what_is_refused,
    many_tasks_share_a_transport,
    prefetch_is_a_bound,
    prefetch_counts_all_messages_of_a_subscription,
    receive_can_be_cancelled,
    unsettled_goes_back_on_leaving,
    what_was_not_handed_out_does_not_count,
    a_slow_consumer_keeps_its_deliveries,
    a_killed_consumer_gives_up_its_deliveries,
    deaths_are_counted,
    settled_is_gone,
    settling_out_of_order,
    settling_twice_is_harmless,
    delayed_retry,
    delays_do_not_block_each_other,
    dead_letters_are_kept,
    one_letter_for_each_message,
    settling_is_always_possible,
    stats_count_what_is_there,
    a_census_counts_what_is_there,
    a_census_disturbs_nobody,
    unrouted_messages_are_listed_kept_and_purged,
    what_was_kept_for_a_first_subscription_comes_once,
    closing_ends_what_waits,
    a_closed_transport_says_so,
    a_cut_connection_is_made_anew,
    lost_topology_is_made_again,
    topology_lost_while_running_is_restored,
    a_restarted_broker_has_everything,
)

__all__ = [
    "GUARANTEES",
    "Guarantee",
    "GuaranteeBroken",
    "NotApplicable",
    "Rig",
    "a_census_counts_what_is_there",
    "a_census_disturbs_nobody",
    "a_closed_transport_says_so",
    "a_cut_connection_is_made_anew",
    "a_killed_consumer_gives_up_its_deliveries",
    "a_refusal_leaves_the_rest",
    "a_restarted_broker_has_everything",
    "a_slow_consumer_keeps_its_deliveries",
    "backlog_before_the_first_consumer",
    "backlog_before_the_first_subscription",
    "batches_of_any_size",
    "closing_ends_what_waits",
    "competing_consumers",
    "dead_letters_are_kept",
    "deaths_are_counted",
    "delayed_retry",
    "delays_do_not_block_each_other",
    "fan_out",
    "lost_topology_is_made_again",
    "many_tasks_share_a_transport",
    "nothing_overtakes_what_is_refused",
    "one_letter_for_each_message",
    "order_for_one_consumer",
    "order_within_a_key_survives_a_stop",
    "prefetch_counts_all_messages_of_a_subscription",
    "prefetch_is_a_bound",
    "receive_can_be_cancelled",
    "round_trip",
    "settled_is_gone",
    "settling_is_always_possible",
    "settling_out_of_order",
    "settling_twice_is_harmless",
    "stats_count_what_is_there",
    "topology_lost_while_running_is_restored",
    "unrouted_messages_are_listed_kept_and_purged",
    "unsettled_goes_back_on_leaving",
    "what_was_kept_for_a_first_subscription_comes_once",
    "what_was_not_handed_out_does_not_count",
]
