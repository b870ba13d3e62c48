"""The guarantees of every transport, as functions that the author of a transport can run.

Each guarantee takes a `Rig`, uses only the protocol in `eventmesh.transports.base`, and raises
GuaranteeBroken with what it observed. Run `GUARANTEES` in any test framework:

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

Give the rig every fault that its broker can have: a guarantee without the fault that it needs
raises NotApplicable, which proves nothing. `eventmesh.testing.servers.serve_controlled` starts
servers that can be restarted; a TCP proxy can cut connections. If `eventmesh.transports.factory`
can open the transport from another process, set `url` and `prefix`: then consumers are killed by
SIGKILL, instead of leaving.

Each rig uses names of its own, so that rigs can share a broker; but a fault affects everybody on
the broker. With a broker on the same machine, all guarantees together take about half a minute,
plus two restarts.

So no guarantee waits for a long delay to end. That a retry after a day does not come after an hour,
for example because the broker bounds its delays, is for a test of the transport's own: no call of
the protocol tells when a delayed message is due.
"""

from eventmesh.testing.conformance.consuming import (
    a_slow_consumer_keeps_its_deliveries,
    deliveries_of_a_killed_consumer_come_again,
    deliveries_to_dead_workers_are_counted,
    prefetch_limits_unsettled_deliveries,
    prefetch_spans_all_messages_of_a_subscription,
    prefetched_messages_do_not_count_as_delivered,
    receive_can_be_cancelled,
    unsettled_deliveries_return_on_leaving,
)
from eventmesh.testing.conformance.counting import (
    a_census_changes_nothing,
    a_census_counts_every_message,
    messages_are_found_without_being_delivered,
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
    a_closed_transport_is_unreachable,
    a_cut_connection_is_replaced,
    a_restart_loses_nothing,
    closing_ends_a_waiting_receive,
    deleted_topology_is_restored,
    topology_is_declared_again_after_data_loss,
)
from eventmesh.testing.conformance.keeping import (
    unrouted_messages_are_listed_kept_and_purged,
    unrouted_messages_reach_the_first_subscription_once,
)
from eventmesh.testing.conformance.ordering import (
    a_dead_letter_can_hold_its_key,
    a_dead_letter_lets_its_key_continue,
    a_key_goes_to_one_consumer_at_a_time,
    a_retry_holds_back_its_key,
    each_key_is_in_order_whatever_happens,
    held_messages_are_counted,
    keys_are_released_when_dead_letters_hold_none_any_more,
    messages_without_a_key_are_in_order,
    replayed_dead_letters_keep_their_order,
    settling_what_was_taken_back_has_no_effect,
)
from eventmesh.testing.conformance.publishing import (
    a_rejected_message_leaves_the_rest,
    batches_of_any_size,
    many_tasks_share_a_transport,
    nothing_overtakes_a_rejected_message,
)
from eventmesh.testing.conformance.rig import Guarantee, GuaranteeBroken, NotApplicable, Rig
from eventmesh.testing.conformance.settling import (
    dead_letters_are_kept,
    delayed_retry,
    delays_do_not_block_each_other,
    one_dead_letter_for_each_message,
    settled_messages_are_gone,
    settling_is_always_possible,
    settling_out_of_order,
    settling_twice_is_harmless,
    stats_count_messages_by_state,
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
    a_rejected_message_leaves_the_rest,
    nothing_overtakes_a_rejected_message,
    many_tasks_share_a_transport,
    prefetch_limits_unsettled_deliveries,
    prefetch_spans_all_messages_of_a_subscription,
    receive_can_be_cancelled,
    unsettled_deliveries_return_on_leaving,
    prefetched_messages_do_not_count_as_delivered,
    a_slow_consumer_keeps_its_deliveries,
    deliveries_of_a_killed_consumer_come_again,
    deliveries_to_dead_workers_are_counted,
    settled_messages_are_gone,
    settling_out_of_order,
    settling_twice_is_harmless,
    delayed_retry,
    delays_do_not_block_each_other,
    dead_letters_are_kept,
    one_dead_letter_for_each_message,
    settling_is_always_possible,
    a_key_goes_to_one_consumer_at_a_time,
    a_retry_holds_back_its_key,
    settling_what_was_taken_back_has_no_effect,
    a_dead_letter_lets_its_key_continue,
    replayed_dead_letters_keep_their_order,
    a_dead_letter_can_hold_its_key,
    keys_are_released_when_dead_letters_hold_none_any_more,
    held_messages_are_counted,
    messages_without_a_key_are_in_order,
    each_key_is_in_order_whatever_happens,
    stats_count_messages_by_state,
    a_census_counts_every_message,
    a_census_changes_nothing,
    messages_are_found_without_being_delivered,
    unrouted_messages_are_listed_kept_and_purged,
    unrouted_messages_reach_the_first_subscription_once,
    closing_ends_a_waiting_receive,
    a_closed_transport_is_unreachable,
    a_cut_connection_is_replaced,
    topology_is_declared_again_after_data_loss,
    deleted_topology_is_restored,
    a_restart_loses_nothing,
)

__all__ = [
    "GUARANTEES",
    "Guarantee",
    "GuaranteeBroken",
    "NotApplicable",
    "Rig",
    "a_census_changes_nothing",
    "a_census_counts_every_message",
    "a_closed_transport_is_unreachable",
    "a_cut_connection_is_replaced",
    "a_dead_letter_can_hold_its_key",
    "a_dead_letter_lets_its_key_continue",
    "a_key_goes_to_one_consumer_at_a_time",
    "a_rejected_message_leaves_the_rest",
    "a_restart_loses_nothing",
    "a_retry_holds_back_its_key",
    "a_slow_consumer_keeps_its_deliveries",
    "backlog_before_the_first_consumer",
    "backlog_before_the_first_subscription",
    "batches_of_any_size",
    "closing_ends_a_waiting_receive",
    "competing_consumers",
    "dead_letters_are_kept",
    "delayed_retry",
    "delays_do_not_block_each_other",
    "deleted_topology_is_restored",
    "deliveries_of_a_killed_consumer_come_again",
    "deliveries_to_dead_workers_are_counted",
    "each_key_is_in_order_whatever_happens",
    "fan_out",
    "held_messages_are_counted",
    "keys_are_released_when_dead_letters_hold_none_any_more",
    "many_tasks_share_a_transport",
    "messages_are_found_without_being_delivered",
    "messages_without_a_key_are_in_order",
    "nothing_overtakes_a_rejected_message",
    "one_dead_letter_for_each_message",
    "order_for_one_consumer",
    "order_within_a_key_survives_a_stop",
    "prefetch_limits_unsettled_deliveries",
    "prefetch_spans_all_messages_of_a_subscription",
    "prefetched_messages_do_not_count_as_delivered",
    "receive_can_be_cancelled",
    "replayed_dead_letters_keep_their_order",
    "round_trip",
    "settled_messages_are_gone",
    "settling_is_always_possible",
    "settling_out_of_order",
    "settling_twice_is_harmless",
    "settling_what_was_taken_back_has_no_effect",
    "stats_count_messages_by_state",
    "topology_is_declared_again_after_data_loss",
    "unrouted_messages_are_listed_kept_and_purged",
    "unrouted_messages_reach_the_first_subscription_once",
    "unsettled_deliveries_return_on_leaving",
]
