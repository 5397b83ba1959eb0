//! Restoring from the recycle bin: each message once, despite crashes in between.

use std::sync::{Arc, Mutex};

use shepherd_monitor::operator;
use shepherd_monitor::worker::{Answer, Task, Worker};

use super::*;
use crate::support::wait::eventually;

#[tokio::test]
async fn a_dropped_batch_is_restored_and_processed_by_the_fleet() {
    let mut world = World::new().await;
    for n in 0..5 {
        world.add("finish_query", &format!("q{n}")).await;
    }
    world.deliver("finish_query", "gone", 5).await;
    let monitor = world.monitor(&[]).await;
    monitor.until("the stream is seen", LIMIT, |s| s["streams"]["finish_query"]["pending"] == 5).await;
    let (status, body) =
        post(&monitor, "/api/admin/reclaim_dead_consumers?min_idle_seconds=0&dry_run=true", json!({})).await;
    assert_eq!((status, &body["dropped_messages"], &body["dry_run"]), (200, &json!(5), &json!(true)), "{body}");
    assert_eq!(world.length("finish_query").await, 5, "a dry run changes nothing");

    let at = "/api/streams/finish_query/messages";
    let (status, preview) = post(&monitor, &format!("{at}/preview"), json!({"action": "drop", "contains": "q"})).await;
    assert_eq!((status, &preview["messages"]), (200, &json!(5)), "{preview}");
    let order = json!({"token": preview["token"], "why": "\u{0}<b>"});
    let (status, applied) = post(&monitor, &format!("{at}/apply"), order.clone()).await;
    assert_eq!((status, &applied["done"]), (200, &json!(5)), "{applied}");
    let (status, again) = post(&monitor, &format!("{at}/apply"), order).await;
    assert_eq!(status, 400, "a token works once: {again}");
    assert_eq!(world.length("finish_query").await, 0);

    let batch = applied["batch"].as_str().unwrap();
    let (_, bin) = monitor.get(&format!("/api/admin/recycle_bin?batch={batch}")).await;
    let bin: Value = serde_json::from_str(&bin).unwrap();
    let entries = bin["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 5);
    assert!(entries.iter().all(|row| row["state"] == "binned" && row["owner"] == "gone"), "{bin}");
    for round in [5, 0] {
        let (status, back) = post(&monitor, "/api/admin/recycle_bin/restore", json!({"batch": batch})).await;
        assert_eq!((status, &back["restored"]), (200, &json!(round)), "{back}");
    }
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let builder = Worker::builder("finish_query").unwrap().environment(|_| None).redis_url(world.redis.url());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move {
        drop(stopped.await);
        None
    };
    let work = tokio::spawn(builder.run_until(stopped, move |task: Task| {
        noted.lock().unwrap().push(task.query_id().unwrap_or("none").to_owned());
        async { Ok(Answer::forward()) }
    }));
    eventually("all are worked off", LIMIT, || async {
        let mut done = seen.lock().unwrap().clone();
        done.sort();
        if done == ["q0", "q1", "q2", "q3", "q4"] { Ok(()) } else { Err(format!("{done:?}")) }
    })
    .await;
    eventually("and gone", LIMIT, || {
        let mut ask = world.ask.clone();
        async move { redis::cmd("XLEN").arg("finish_query").query_async::<u64>(&mut ask).await.unwrap() == 0 }
    })
    .await;
    stop.send(()).unwrap();
    work.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_token_is_valid_for_its_stream_only_and_parallel_restores_count_each_message_once() {
    let mut world = World::new().await;
    for n in 0..300 {
        world.add("finish_query", &format!("q{n:03}")).await;
    }
    world.add("merge_message", "other").await;
    world.deliver("finish_query", "gone", 300).await;
    let monitor = world.monitor(&[]).await;
    monitor.until("both are seen", LIMIT, |s| s["streams"].as_object().is_some_and(|all| all.len() == 2)).await;
    let at = |stream: &str, what: &str| format!("/api/streams/{stream}/messages/{what}");
    let asked = json!({"action": "drop", "contains": "q"});
    let (_, preview) = post(&monitor, &at("finish_query", "preview"), asked).await;
    assert_eq!(preview["messages"], 300, "{preview}");
    let order = json!({"token": preview["token"]});
    let (status, refused) = post(&monitor, &at("merge_message", "apply"), order.clone()).await;
    assert_eq!(status, 400, "{refused}");
    assert_eq!((world.length("finish_query").await, world.length("merge_message").await), (300, 1));
    let (status, applied) = post(&monitor, &at("finish_query", "apply"), order).await;
    assert_eq!((status, &applied["done"]), (200, &json!(300)), "the token is still valid: {applied}");

    let order = json!({"batch": applied["batch"]});
    let restores = (0..4).map(|_| post(&monitor, "/api/admin/recycle_bin/restore", order.clone()));
    let restores = futures_util::future::join_all(restores).await;
    let restored: u64 = restores.iter().map(|(_, answer)| answer["restored"].as_u64().unwrap()).sum();
    assert_eq!(restored, 300, "{restores:?}");
    assert_eq!(world.queries("finish_query").await, (0..300).map(|n| format!("q{n:03}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn after_a_crash_no_message_is_lost_or_restored_twice() {
    // Control: without a failpoint, the process does not die.
    for place in ["operator.binned", "operator.dropped", "operator.restored", "no.such.place"] {
        let mut world = World::new().await;
        let all: Vec<String> = (0..6).map(|n| format!("q{n}")).collect();
        for query in &all {
            world.add("s", query).await;
        }
        world.deliver("s", "gone", 6).await;
        let doomed = world.monitor(&[("SHEPHERD_FAILPOINT", place)]).await;
        doomed.until("the stream is seen", LIMIT, |s| s["streams"]["s"]["pending"] == 6).await;
        let client = reqwest::Client::builder().timeout(LIMIT).build().unwrap();
        let ask = |path: String, body: String| {
            let request = client.post(doomed.url(&path)).header("content-type", "application/json").body(body);
            async move { request.send().await.map(|answer| answer.status().as_u16()) }
        };
        let dropped = ask("/api/admin/reclaim_dead_consumers?min_idle_seconds=0".to_owned(), String::new()).await;
        let sql = world.database.connect().await;
        let batch: String =
            sql.query_one("SELECT DISTINCT batch::text FROM monitor_recycle_bin", &[]).await.unwrap().get(0);
        let order = json!({"batch": batch}).to_string();
        if place == "operator.restored" {
            assert_eq!(dropped.unwrap(), 200);
            drop(ask("/api/admin/recycle_bin/restore".to_owned(), order.clone()).await);
        }
        if place == "no.such.place" {
            assert!(doomed.is_running());
        } else {
            eventually("it dies there", LIMIT, || async { !doomed.is_running() }).await;
        }
        let length = world.length("s").await;
        let expected = if place == "operator.dropped" || place == "no.such.place" { 0 } else { 6 };
        assert_eq!(length, expected, "{place}: in the stream now");
        let states = sql.query("SELECT state FROM monitor_recycle_bin", &[]).await.unwrap();
        assert_eq!(states.len(), 6, "{place}: all are in the bin");

        let monitor = world.monitor(&[]).await;
        for round in 0..3 {
            let (status, back) = post(&monitor, "/api/admin/recycle_bin/restore", json!({"batch": batch})).await;
            assert_eq!(status, 200, "{back}");
            if round == 0 {
                let (restored, never_left) = if place == "operator.binned" { (0, 6) } else { (6, 0) };
                assert_eq!((&back["restored"], &back["never_left"]), (&json!(restored), &json!(never_left)), "{place}");
            }
            assert_eq!(world.queries("s").await, all, "{place}: each is there once");
        }
        if place == "operator.binned" {
            assert_eq!(world.pending("s").await.len(), 6, "as if nothing had been");
        }
    }
}

#[tokio::test]
async fn messages_that_another_group_needs_are_restored_as_pending_without_duplicates() {
    let mut world = World::new().await;
    let sources = world.sources().await;
    world.add("s", "q").await;
    let ids = world.deliver("s", "gone", 1).await;
    world.text("XGROUP CREATE s another 0").await;
    let chosen = preview(&sources, "s", MessageState::Pending, Action::Drop).await.chosen;
    let applied = operator::apply(&sources, &chosen, "somebody").await;
    assert_eq!(applied.done, 1, "{applied:?}");
    assert_eq!((world.length("s").await, world.pending("s").await.len()), (1, 0), "the other group keeps it");
    let batch = Some(applied.batch.unwrap().parse().unwrap());
    let filter = shepherd_monitor::postgres::recycle_bin::Filter { batch, ..Default::default() };
    for round in [1, 0] {
        let back = operator::recycle::restore(&sources, &filter, "somebody").await.unwrap();
        assert_eq!(back.restored, round);
        assert_eq!(world.length("s").await, 1);
        let pending = world.pending("s").await;
        assert_eq!((pending.len(), &pending[0].0, pending[0].1.as_str()), (1, &ids[0], "gone"));
    }
}

#[tokio::test]
async fn dead_letters_are_dropped_restored_and_retried() {
    let mut world = World::new().await;
    let sources = world.sources().await;
    world.add("s", "q").await;
    world.deliver("s", "gone", 1).await;
    for (state, action) in
        [(MessageState::Pending, Action::Bury), (MessageState::Dead, Action::Drop), (MessageState::Dead, Action::Retry)]
    {
        let chosen = preview(&sources, "s", state, action).await.chosen;
        let applied = operator::apply(&sources, &chosen, "somebody").await;
        assert_eq!(applied.done, 1, "{action} {state}: {applied:?}");
        if action == Action::Drop {
            assert_eq!(world.length("s:dead").await, 0);
            let batch = Some(applied.batch.unwrap().parse().unwrap());
            let filter = shepherd_monitor::postgres::recycle_bin::Filter { batch, ..Default::default() };
            let back = operator::recycle::restore(&sources, &filter, "somebody").await.unwrap();
            assert_eq!(back.restored, 1);
        }
        assert_eq!(world.length("s:dead").await, u64::from(action != Action::Retry));
    }
    assert_eq!(world.queries("s").await, ["q"]);
}

#[tokio::test]
async fn messages_on_dead_consumers_are_retried_and_the_consumers_removed() {
    let mut world = World::new().await;
    let sources = world.sources().await;
    for n in 0..4 {
        world.add("s", &format!("q{n}")).await;
    }
    world.deliver("s", "gone", 2).await;
    world.deliver("s", "alive", 2).await;
    world.text("SET worker:heartbeat:s:alive {}").await;
    let streams = [Name::from("s"), Name::from("no such stream")];
    let found = preview::on_dead_consumers(&sources.redis, &streams, 0, (Action::Retry, "handed back")).await.unwrap();
    assert!(found.complete);
    let consumers: Vec<(String, u64)> = found.consumers.iter().map(|dead| (dead.name.to_text(), dead.stuck)).collect();
    assert_eq!(consumers, [("gone".to_owned(), 2)]);
    let applied = operator::apply(&sources, &found.chosen, "somebody").await;
    assert_eq!((applied.done, applied.consumers_removed), (2, 1), "{applied:?}");
    assert_eq!(world.queries("s").await, ["q0", "q1", "q2", "q3"]);
    assert_eq!(world.pending("s").await.len(), 2, "those of the living");
    // A consumer with a new pending message is not removed.
    world.deliver("s", "gone", 1).await;
    let applied = operator::apply(&sources, &found.chosen, "somebody").await;
    assert_eq!((applied.done, applied.consumers_removed), (0, 0), "{applied:?}");
    assert_eq!(world.pending("s").await.len(), 3);
}
