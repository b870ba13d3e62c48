"""Every transport keeps every guarantee; and the guarantees notice a transport that does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eventmesh.testing import conformance
from eventmesh.testing.conformance import GUARANTEES, Guarantee, GuaranteeBroken, NotApplicable, Rig
from eventmesh.testing.servers import WAYS
from tests.conformance import broken
from tests.conformance.broken import BrokenTransport
from tests.conformance.rigs import rig_in_memory


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda guarantee: guarantee.__name__)
async def test_a_transport_keeps_a_guarantee(
    request: pytest.FixtureRequest, rig: Rig, guarantee: Guarantee
) -> None:
    try:
        await guarantee(rig)
    except NotApplicable as reason:
        started_here = request.node.callspec.params["rig"].endswith(WAYS)
        if started_here and "the rig has no" in str(reason):
            pytest.fail(str(reason))
        pytest.skip(f"not applicable: {reason}")


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda guarantee: guarantee.__name__)
async def test_a_prefix_in_several_slots_keeps_a_guarantee(
    spread_rig: Rig, guarantee: Guarantee
) -> None:
    try:
        await guarantee(spread_rig)
    except NotApplicable as reason:
        pytest.skip(f"not applicable: {reason}")


BROKEN: tuple[tuple[Guarantee, type[BrokenTransport]], ...] = (
    (conformance.round_trip, broken.KnowsOnlyAscii),
    (conformance.fan_out, broken.LosesEverySecond),
    (conformance.order_for_one_consumer, broken.PublishesBackwards),
    (conformance.order_within_a_key_survives_a_stop, broken.ReturnsToTheEnd),
    (conformance.competing_consumers, broken.DeliversToTwo),
    (conformance.backlog_before_the_first_consumer, broken.BeginsAtTheEnd),
    (conformance.backlog_before_the_first_subscription, broken.DropsTheUnrouted),
    (conformance.batches_of_any_size, broken.CutsShortTheBig),
    (conformance.a_rejected_message_leaves_the_rest, broken.StopsAtARefusal),
    (conformance.nothing_overtakes_a_rejected_message, broken.StoresWhatIsBehindARefusal),
    (conformance.many_tasks_share_a_transport, broken.PublishesForOneTaskOnly),
    (conformance.prefetch_limits_unsettled_deliveries, broken.HasNoPrefetch),
    (conformance.prefetch_spans_all_messages_of_a_subscription, broken.CountsEachMessageAlone),
    (conformance.receive_can_be_cancelled, broken.AcknowledgesOnReceipt),
    (conformance.unsettled_deliveries_return_on_leaving, broken.NeverGivesBack),
    (conformance.prefetched_messages_do_not_count_as_delivered, broken.CountsWhatIsFetched),
    (conformance.a_slow_consumer_keeps_its_deliveries, broken.StealsFromTheSlow),
    (conformance.deliveries_of_a_killed_consumer_come_again, broken.NeverGivesBack),
    (conformance.deliveries_to_dead_workers_are_counted, broken.CountsNoDeaths),
    (conformance.settled_messages_are_gone, broken.ForgetsWhatIsDone),
    (conformance.settling_out_of_order, broken.SettlesAllBefore),
    (conformance.settling_twice_is_harmless, broken.RetriesTheSettled),
    (conformance.delayed_retry, broken.RetriesAtOnce),
    (conformance.delays_do_not_block_each_other, broken.HasOneQueueForAllDelays),
    (conformance.dead_letters_are_kept, broken.DropsTheDead),
    (conformance.one_dead_letter_for_each_message, broken.ListsEveryLetter),
    (conformance.dead_letters_are_kept, broken.IgnoresTheBoundsOfAList),
    (conformance.settling_is_always_possible, broken.StoresShortTextsOnly),
    (conformance.a_key_goes_to_one_consumer_at_a_time, broken.KeepsNoOrder),
    (conformance.a_retry_holds_back_its_key, broken.KeepsNoOrder),
    (conformance.settling_what_was_taken_back_has_no_effect, broken.SettlesTheDoneFirst),
    (conformance.a_dead_letter_lets_its_key_continue, broken.ReplaysToTheEnd),
    (conformance.replayed_dead_letters_keep_their_order, broken.ReplaysToTheEnd),
    (conformance.a_dead_letter_can_hold_its_key, broken.HoldsNoKey),
    (
        conformance.keys_are_released_when_dead_letters_hold_none_any_more,
        broken.KeepsTheFirstOrder,
    ),
    (conformance.held_messages_are_counted, broken.CountsNothingAsHeld),
    (conformance.messages_without_a_key_are_in_order, broken.SpreadsMessagesWithoutAKey),
    (conformance.each_key_is_in_order_whatever_happens, broken.KeepsNoOrder),
    (conformance.stats_count_messages_by_state, broken.TellsZeroForUnknown),
    (conformance.stats_count_messages_by_state, broken.CountsWhatNobodyDeclared),
    (conformance.stats_count_messages_by_state, broken.TellsNoReason),
    (conformance.a_census_counts_every_message, broken.ForgetsTheDelayed),
    (conformance.a_census_changes_nothing, broken.CountsByTakingOut),
    (conformance.messages_are_found_without_being_delivered, broken.FindsTheReadyOnly),
    (conformance.unrouted_messages_are_listed_kept_and_purged, broken.PurgesTheNewest),
    (conformance.unrouted_messages_reach_the_first_subscription_once, broken.KeepsWhatItRoutes),
    (conformance.closing_ends_a_waiting_receive, broken.WaitsOnWhenClosed),
    (conformance.a_closed_transport_is_unreachable, broken.ConnectsAgainUnasked),
    (conformance.a_cut_connection_is_replaced, broken.SleepsThroughALoss),
    (conformance.topology_is_declared_again_after_data_loss, broken.DeclaresOnlyOnce),
    (conformance.deleted_topology_is_restored, broken.SleepsThroughALoss),
    (conformance.a_restart_loses_nothing, broken.KeepsDelaysToItself),
)


def test_each_guarantee_has_a_transport_that_breaks_it() -> None:
    assert list(dict.fromkeys(guarantee for guarantee, _ in BROKEN)) == list(GUARANTEES)


@pytest.mark.parametrize(
    ("guarantee", "transport"),
    [
        pytest.param(guarantee, transport, id=f"{guarantee.__name__}-{transport.__name__}")
        for guarantee, transport in BROKEN
    ],
)
async def test_a_guarantee_notices_a_transport_that_breaks_it(
    guarantee: Guarantee, transport: type[BrokenTransport]
) -> None:
    with pytest.raises(GuaranteeBroken):
        await guarantee(rig_in_memory(transport, transport.made_by(), patience=1.0))


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda guarantee: guarantee.__name__)
async def test_it_is_not_the_way_of_breaking_that_is_noticed(guarantee: Guarantee) -> None:
    """The broken transports' scaffolding, which by itself breaks nothing, keeps every guarantee."""
    await guarantee(rig_in_memory(BrokenTransport, BrokenTransport.made_by()))


@pytest.mark.parametrize(
    ("guarantee", "part"),
    [
        (conformance.a_cut_connection_is_replaced, "cut"),
        (conformance.a_restart_loses_nothing, "restart"),
        (conformance.topology_is_declared_again_after_data_loss, "lose_data"),
        (conformance.nothing_overtakes_a_rejected_message, "refuse"),
        (conformance.deleted_topology_is_restored, "lose_topology"),
    ],
)
async def test_a_guarantee_without_what_it_needs_is_not_passed(
    guarantee: Guarantee, part: str
) -> None:
    bare = replace(
        rig_in_memory(), cut=None, restart=None, lose_data=None, lose_topology=None, refuse=None
    )
    with pytest.raises(NotApplicable, match=part):
        await guarantee(bare)
