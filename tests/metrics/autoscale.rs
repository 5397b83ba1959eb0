//! What an autoscaler is told, with numbers worked by hand.

use serde_json::{Value, json};

use super::*;

async fn ask(monitor: &Monitor, path: &str) -> (u16, Value) {
    let (status, body) = monitor.get(&format!("/api/autoscale/{path}")).await;
    (status, serde_json::from_str(&body).unwrap())
}

/// Asks until the answer makes `true`.
async fn ask_until(monitor: &Monitor, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(path, SOON, || async {
        let (status, body) = ask(monitor, path).await;
        if status == 200 && holds(&body) { Ok(body) } else { Err(format!("{status}: {body}")) }
    })
    .await
}

#[tokio::test]
async fn the_proposal_follows_from_rate_service_time_and_backlog() {
    let ground = Ground::new(&[]).await;
    let mut connection = ground.connection().await;
    run(&mut connection, "XGROUP CREATE jobs consumer 0 MKSTREAM").await;
    for _ in 0..32 {
        run(&mut connection, "XADD jobs * f v").await;
    }
    run(&mut connection, "XREADGROUP GROUP consumer bbbb0001 COUNT 2 STREAMS jobs >").await;
    let monitor = &ground.monitor;
    // Nobody has said yet how long a task takes, nor how many a worker runs at once.
    let answer = ask_until(monitor, "jobs?drain_sec=60", |answer| answer["arrival_per_sec"] == 0.0).await;
    assert_eq!(answer["backlog"], 32, "30 unread and 2 at work");
    assert_eq!(
        (&answer["proposed_replicas"], &answer["unknown"]),
        (&Value::Null, &json!(["service_sec", "task_limit"]))
    );
    // 32 of 3 s within 60 s keep 1.6 busy.
    let (_, answer) = ask(monitor, "jobs?drain_sec=60&service_sec=3&task_limit=1").await;
    assert_eq!((&answer["proposed_replicas"], &answer["unknown"]), (&json!(2), &json!([])));

    // Now tasks took 2 s and 4 s, and a worker says that it runs 4 at once: 32 of 3 s within 10 s keep 9.6 busy.
    run(&mut connection, "LPUSH monitor:task_durations:jobs 2000 4000").await;
    let beat = r#"{"stream":"jobs","consumer":"bbbb0001","started_at":1,"last_seen":1,"task_limit":4}"#;
    run_words(&mut connection, &[b"SET", b"worker:heartbeat:jobs:bbbb0001", beat.as_bytes(), b"EX", b"60"]).await;
    let answer = ask_until(monitor, "jobs?drain_sec=10", |answer| answer["unknown"] == json!([])).await;
    assert_eq!((&answer["service_sec"], &answer["task_limit"]), (&json!(3.0), &json!(4.0)));
    assert_eq!(answer["proposed_replicas"], 3);
    // By default it may take five minutes: 0.32 busy.
    let (_, answer) = ask(monitor, "jobs").await;
    assert_eq!((&answer["drain_sec"], &answer["proposed_replicas"]), (&json!(300.0), &json!(1)));

    // What comes in counts as well.
    for _ in 0..300 {
        run(&mut connection, "XADD jobs * f v").await;
    }
    let answer = ask_until(monitor, "jobs?drain_sec=1000", |answer| answer["backlog"] == 332).await;
    let (arrival, proposed) =
        (answer["arrival_per_sec"].as_f64().unwrap(), answer["proposed_replicas"].as_f64().unwrap());
    assert!(arrival > 0.0, "{answer}");
    assert_eq!(proposed, ((arrival * 3.0 + 332.0 * 3.0 / 1000.0) / 4.0).ceil());

    // Nothing to do and nothing coming.
    run(&mut connection, "XGROUP CREATE idle consumer 0 MKSTREAM").await;
    run(&mut connection, "XADD idle 1-1 f v").await;
    run(&mut connection, "XREADGROUP GROUP consumer cccc0001 COUNT 1 STREAMS idle >").await;
    run(&mut connection, "XACK idle consumer 1-1").await;
    let answer = ask_until(monitor, "idle", |answer| answer["backlog"] == 0 && answer["arrival_per_sec"] == 0.0).await;
    assert_eq!(answer["proposed_replicas"], 0);
}

#[tokio::test]
async fn a_stream_that_no_worker_ever_used_has_a_backlog_to_start_the_first_one_for() {
    let ground = Ground::new(&[]).await;
    let mut connection = ground.connection().await;
    for _ in 0..7 {
        run(&mut connection, "XADD jobs * f v").await;
    }
    let answer = ask_until(&ground.monitor, "jobs", |answer| answer["backlog"] == 7).await;
    assert_eq!((&answer["alive"], &answer["worker_type"]), (&json!(0), &json!("jobs")));
    let (status, answer) = ask(&ground.monitor, "jobs?service_sec=600&task_limit=2&drain_sec=600").await;
    // Without a group, Redis does not say how fast tasks come in.
    assert_eq!(status, 200);
    assert_eq!((&answer["proposed_replicas"], &answer["unknown"]), (&Value::Null, &json!(["arrival_per_sec"])));
    // A group that nobody has read with, and a type that was forgotten.
    run(&mut connection, "XGROUP CREATE jobs consumer 0").await;
    ask_until(&ground.monitor, "jobs", |answer| answer["backlog"] == 7).await;
    ground.monitor.takes_orders().await;
    let forget = ground.monitor.url("/api/admin/forget_worker?name=jobs");
    reqwest::Client::new().post(forget).send().await.unwrap();
    let answer = ask_until(&ground.monitor, "jobs", |answer| answer["backlog"] == 7).await;
    assert_eq!(answer["alive"], 0);
}

#[tokio::test]
async fn a_backlog_that_is_not_known_is_an_error_and_never_nothing() {
    let ground = Ground::new(&[]).await;
    let mut connection = ground.connection().await;
    // At once: while the stream has no group, its whole length is its backlog.
    let script = "for n = 1, 400 do redis.call('XADD', KEYS[1], n .. '-1', 'f', 'v') end
        redis.call('XGROUP', 'CREATE', KEYS[1], 'consumer', '200-1')
        redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], 'consumer', 'c')";
    run_words(&mut connection, &[b"EVAL", script.as_bytes(), b"1", b"many"]).await;
    let monitor = &ground.monitor;
    ask_until(monitor, "arax", |answer| answer["backlog"] == 0).await;
    // Only a lower bound.
    eventually("the stream is watched", SOON, || async { ask(monitor, "many").await.0 != 404 }).await;
    let (status, problem) = ask(monitor, "many").await;
    assert_eq!(status, 503, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("≥ 100"), "{problem}");
    assert_eq!(problem["type"], "urn:shepherd-monitor:problem:unavailable");
    // Nobody by that name; figures that are none.
    assert_eq!(ask(monitor, "nobody").await.0, 404);
    for query in ["drain_sec=0", "drain_sec=-5", "drain_sec=NaN", "drain_sec=soon", "task_limit=0.5", "service_sec=0"] {
        let (status, problem) = ask(monitor, &format!("arax?{query}")).await;
        assert_eq!((status, &problem["status"]), (400, &json!(400)), "{query}");
    }
    // Redis timed out: what was read last is not what is.
    ground.redis.stop().unwrap();
    let problem = eventually("Redis is away", SOON, || async {
        let (status, problem) = ask(monitor, "arax").await;
        if status == 503 { Ok(problem) } else { Err(problem) }
    })
    .await;
    assert!(problem["detail"].as_str().unwrap().contains("arax"), "{problem}");
    let answer = reqwest::get(monitor.url("/api/autoscale/arax")).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    ground.redis.resume().unwrap();
    ask_until(monitor, "arax", |answer| answer["backlog"] == 0).await;
}
