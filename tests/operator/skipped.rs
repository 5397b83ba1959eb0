//! Messages that change between preview and apply are skipped.

use std::collections::BTreeMap;

use shepherd_monitor::fleet::message::{Chosen, Verdict};
use shepherd_monitor::operator;

use super::*;

/// Previews six entries, five owned by `gone` and one by `restore`, and then changes each but the first in a different
/// way.
async fn chosen_and_changed(world: &mut World, sources: &Sources, action: Action) -> (Chosen, Vec<String>) {
    for n in 0..6 {
        world.add("s", &format!("q{n}")).await;
    }
    let mut ids = world.deliver("s", "gone", 5).await;
    ids.extend(world.deliver("s", "back", 1).await);
    let mut chosen = preview(sources, "s", MessageState::Pending, action).await.chosen;
    (chosen.of_the_dead, chosen.min_idle_ms) = (true, 3_600_000);
    assert_eq!(chosen.len(), 6);
    world.text(&format!("XACK s consumer {}", ids[1])).await;
    world.text(&format!("XCLAIM s consumer other 0 {} IDLE {HOURS} JUSTID", ids[2])).await;
    world.text(&format!("XCLAIM s consumer gone 0 {} IDLE {HOURS}", ids[3])).await;
    world.text(&format!("XCLAIM s consumer gone 0 {} IDLE 0 JUSTID", ids[4])).await;
    world.text("SET worker:heartbeat:s:back {}").await;
    (chosen, ids)
}

#[tokio::test]
async fn entries_that_changed_since_the_preview_are_skipped_and_counted() {
    for action in Action::ALL {
        let mut world = World::new().await;
        let sources = world.sources().await;
        let (chosen, ids) = chosen_and_changed(&mut world, &sources, action).await;
        let before = world.pending("s").await;
        let applied = operator::apply(&sources, &chosen, "somebody").await;
        let left: BTreeMap<&str, u64> =
            ["acknowledged", "claimed", "delivered_again", "active", "alive"].into_iter().map(|why| (why, 1)).collect();
        assert_eq!((applied.done, applied.left_alone.clone()), (1, left), "{action}: {applied:?}");
        assert_eq!(applied.consumers_removed, 0, "both still hold something");
        let after = world.pending("s").await;
        let owned = |rows: &[(String, String, u64, u64)]| {
            rows.iter().map(|row| (row.0.clone(), row.1.clone(), row.3)).collect::<Vec<_>>()
        };
        assert_eq!(owned(&after), owned(&before[1..]), "{action}: all but the first as before");
        let still = world.text(&format!("XRANGE s {0} {0}", ids[0])).await;
        assert_eq!(still, Answer::Array(Vec::new()), "{action}: the first is gone from its place");
        match action {
            Action::Retry => assert_eq!(world.length("s").await, 6, "its copy is there"),
            Action::Bury => assert_eq!(world.length("s:dead").await, 1),
            Action::Drop => assert_eq!((world.length("s").await, world.length("s:dead").await), (5, 0)),
        }
    }
}

/// The same changes without the fence: proves that the test above can fail.
#[tokio::test]
async fn without_the_fence_the_same_changes_lose_entries() {
    let mut world = World::new().await;
    let sources = world.sources().await;
    let (chosen, _) = chosen_and_changed(&mut world, &sources, Action::Drop).await;
    for (_, id, _) in &chosen.parts[0].entries {
        world.text(&format!("XACK s consumer {id}")).await;
        world.text(&format!("XDEL s {id}")).await;
    }
    assert!(world.pending("s").await.is_empty(), "four that somebody has at work are lost");
}

#[tokio::test]
async fn a_stream_that_was_deleted_or_recreated_is_skipped() {
    for action in Action::ALL {
        let mut world = World::new().await;
        let sources = world.sources().await;
        for n in 0..3 {
            world.add("s", &format!("q{n}")).await;
        }
        world.deliver("s", "gone", 3).await;
        let chosen = preview(&sources, "s", MessageState::Pending, action).await.chosen;
        world.text("DEL s").await;
        let applied = operator::apply(&sources, &chosen, "somebody").await;
        assert_eq!((applied.done, applied.left_alone.get("gone")), (0, Some(&3)), "{applied:?}");
        world.add("s", "new").await;
        world.deliver("s", "gone", 1).await;
        let applied = operator::apply(&sources, &chosen, "somebody").await;
        assert_eq!((applied.done, applied.left()), (0, 3), "{applied:?}");
        assert_eq!(world.queries("s").await, ["new"]);
    }
}

#[tokio::test]
async fn undelivered_messages_are_dropped_unless_delivered_or_needed_elsewhere() {
    let mut world = World::new().await;
    let sources = world.sources().await;
    for n in 0..4 {
        world.add("s", &format!("q{n}")).await;
    }
    world.deliver("s", "w", 1).await;
    let chosen = preview(&sources, "s", MessageState::Unread, Action::Drop).await.chosen;
    assert_eq!(chosen.len(), 3);
    world.deliver("s", "w", 1).await;
    let applied = operator::apply(&sources, &chosen, "somebody").await;
    assert_eq!((applied.done, applied.left_alone.get("delivered")), (2, Some(&1)), "{applied:?}");
    world.add("s", "q9").await;
    world.text("XGROUP CREATE s another 0").await;
    let chosen = preview(&sources, "s", MessageState::Unread, Action::Drop).await.chosen;
    let applied = operator::apply(&sources, &chosen, "somebody").await;
    assert_eq!((applied.done, applied.left_alone.get("needed_elsewhere")), (0, Some(&1)), "{applied:?}");
    assert_eq!(world.queries("s").await, ["q0", "q1", "q9"]);
}

#[tokio::test]
async fn a_retried_message_keeps_its_age_history_and_idempotency_key() {
    let mut world = World::new().await;
    let sources = world.sources().await;
    let id = world.add("s", "q").await;
    world.deliver("s", "gone", 1).await;
    let chosen = preview(&sources, "s", MessageState::Pending, Action::Retry).await.chosen;
    let applied = operator::apply(&sources, &chosen, "somebody").await;
    assert_eq!(applied.done, 1, "{applied:?}");
    let entries: Entries = redis::from_redis_value(world.text("XRANGE s - +").await).unwrap();
    let (new, fields) = &entries[0];
    let origin = fields.iter().find(|(name, _)| name == b"shepherd_origin").unwrap();
    let origin: Value = serde_json::from_slice(&origin.1).unwrap();
    assert_eq!(origin, json!({"stream": "s", "id": id, "hop": 0}));
    let record: Vec<String> = redis::from_redis_value(
        world.text(&format!("HMGET worker:deliveries:s:consumer:{new} first_ms history")).await,
    )
    .unwrap();
    let history: Value = serde_json::from_str(&record[1]).unwrap();
    assert_eq!((&history[0]["consumer"], &history[0]["reason"]), (&json!("gone"), &json!("a test")));
    let added: u64 = new.split('-').next().unwrap().parse().unwrap();
    let first: u64 = record[0].parse().unwrap();
    assert!(added - first >= HOURS, "{first} is two hours before {added}");
    assert!(world.pending("s").await.is_empty());
}

#[test]
fn every_status_of_the_scripts_is_known() {
    for script in [
        include_str!("../../src/redis_streams/scripts/operate.lua"),
        include_str!("../../src/redis_streams/scripts/drop_dead.lua"),
    ] {
        for word in script.split("return '").skip(1).filter_map(|rest| rest.split('\'').next()) {
            if !word.starts_with("ERR") {
                assert!(!matches!(Verdict::from_word(word), Verdict::Refused(_)), "{word}");
            }
        }
    }
}
