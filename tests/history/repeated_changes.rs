//! An outage that two monitors see is stored once, in either order.

use shepherd_monitor::fleet::event::{Event, EventKind};
use shepherd_monitor::fleet::reading::{SourceTrouble, TroubleKind};
use shepherd_monitor::postgres::events::{self, Filter, NewRow};
use uuid::Uuid;

use super::*;

fn change(ts: f64, kind: EventKind) -> NewRow {
    let key = Uuid::new_v4().to_string();
    NewRow::from(&Event { ts, subject: "redis".to_owned(), kind, key, running: (0, 0) })
}

#[tokio::test]
async fn outage_stored_by_two_monitors_concurrently_is_stored_once() {
    let database = TestDatabase::create();
    let pools = [migrated(&database).await, migrated(&database).await];
    let mut later = Vec::new();
    for outage in 0..20 {
        let at = 1.8e9 + f64::from(outage) * 60.0;
        let down = |after: f64| {
            vec![change(
                at + after,
                EventKind::SourceDown { trouble: SourceTrouble::new(TroubleKind::TimedOut, "no answer") },
            )]
        };
        let up = |after: f64| vec![change(at + 10.0 + after, EventKind::SourceUp { away_sec: 10 })];
        for [one, other] in [[down(0.0), down(0.5)], [up(0.0), up(0.5)]] {
            let (first, second) = tokio::join!(events::insert(&pools[0], &one), events::insert(&pools[1], &other));
            first.unwrap();
            second.unwrap();
            later.extend(one.into_iter().chain(other));
        }
    }
    // A monitor that missed the confirmation stores them again, in any order.
    later.reverse();
    events::insert(&pools[0], &later).await.unwrap();
    let stored = events::newest(&pools[0], &Filter::default(), 100).await.unwrap();
    let types: Vec<&str> = stored.iter().map(|row| row.type_.as_str()).collect();
    assert_eq!(types, ["source_up", "source_down"].repeat(20));
}
