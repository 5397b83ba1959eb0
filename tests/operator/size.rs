//! A million pending entries: each page scans a bounded part without blocking Redis.

use std::time::Instant;

use shepherd_monitor::redis_streams::messages::{Bounds, Start, page};

use super::*;

const ENTRIES: u64 = 1_000_000;

#[tokio::test]
async fn a_page_of_a_million_pending_entries_scans_a_bounded_part() {
    let mut world = World::new().await;
    let sources = world.sources().await;
    let fill = "for i = 1, 50000 do redis.call('XADD', KEYS[1], '*', 'query_id', 'q' .. i, 'n', i) end
                redis.call('XREADGROUP', 'GROUP', 'consumer', 'w', 'COUNT', 50000, 'STREAMS', KEYS[1], '>') return 0";
    world.text("XGROUP CREATE s consumer 0 MKSTREAM").await;
    for _ in 0..ENTRIES / 50_000 {
        world.command(&[b"EVAL", fill.as_bytes(), b"1", b"s"]).await;
    }
    world.text("CONFIG SET slowlog-log-slower-than 0").await;
    world.text("CONFIG SET slowlog-max-len 5000").await;
    world.text("SLOWLOG RESET").await;
    let (stream, pending) = (Name::from("s"), wanted(MessageState::Pending));
    let bounds = Bounds { matches: 20, looked: 5000, shown: 4096 };
    let (mut last, mut times) = (None::<String>, Vec::new());
    for _ in 0..50 {
        let began = Instant::now();
        let start = last.as_deref().map_or(Start::Beginning, Start::After);
        let found = page(&sources.redis, &stream, &pending, start, bounds).await.unwrap();
        times.push(began.elapsed());
        assert_eq!((found.messages.len(), found.looked), (20, 20));
        last = found.next;
    }
    let nowhere = Wanted { contains: b"nowhere".to_vec(), ..pending };
    let began = Instant::now();
    let found = page(&sources.redis, &stream, &nowhere, Start::Beginning, bounds).await.unwrap();
    let searched = began.elapsed();
    assert_eq!((found.messages.len(), found.looked), (0, 5000));
    assert!(found.next.is_some(), "it says that there is more");
    let began = Instant::now();
    let chosen = preview(&sources, "s", MessageState::Pending, Action::Retry).await;
    let previewed = began.elapsed();
    assert_eq!((chosen.chosen.len(), chosen.complete), (10_000, false));
    let slow: Vec<Vec<Answer>> = redis::from_redis_value(world.text("SLOWLOG GET 5000").await).unwrap();
    let mut spent: Vec<u64> = slow
        .iter()
        .filter(|row| format!("{:?}", row[3]).to_uppercase().contains("EVALSHA"))
        .map(|row| redis::from_redis_value(row[2].clone()).unwrap())
        .collect();
    spent.sort_unstable();
    times.sort();
    println!(
        "a million pending: a page {:?} (median) {:?} (longest), 5000 searched in {searched:?}, 10,000 chosen in \
         {previewed:?}; the longest of {} commands {} µs, median {} µs",
        times[25],
        times[49],
        spent.len(),
        spent[spent.len() - 1],
        spent[spent.len() / 2],
    );
    assert!(spent.len() > 50, "they are counted");
    // A scan of the whole stream would block Redis for a second.
    assert!(spent[spent.len() / 2] < 5000, "{spent:?}");
}
