//! Entries that exceed the delivery limit, and the `dead-letters` commands.

use redis::Value;

use super::*;

#[tokio::test]
async fn an_entry_beyond_the_delivery_limit_is_dead_lettered_with_its_history() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let id = add(&mut redis, "poison", &["a"]).await;
    let mut owners = Vec::new();
    for delivery in 1..=3 {
        let seen = Seen::default();
        let victim = Running::start(quick(&server, "a").delivery_limit(2), {
            let seen = seen.clone();
            move |task| {
                seen.note(&task);
                std::future::pending()
            }
        });
        eventually("it is delivered", PATIENCE, || async { seen.tasks().len() == 1 }).await;
        let fence = seen.tasks()[0].fence().clone();
        assert_eq!(fence.deliveries, delivery);
        owners.push(fence.consumer.to_text());
        victim.crash().await;
        let _: Value = ask!(redis, "DEL", format!("worker:heartbeat:a:{}", owners.last().unwrap()));
    }
    let worker = Running::start(quick(&server, "a").delivery_limit(2), done);
    reaches(&redis, "a:dead", 1).await;
    worker.leave().await;
    assert_eq!((length(&mut redis, "a").await, length(&mut redis, "finish_query").await), (0, 0));
    let (_, letter) = &entries(&mut redis, "a:dead").await[0];
    assert_eq!((field(letter, "query_id"), field(letter, "dead_id")), ("poison", id.as_str()));
    assert_eq!((field(letter, "dead_stream"), field(letter, "dead_deliveries")), ("a", "3"));
    assert!(field(letter, "dead_error").contains("delivered 3 times"), "{letter:?}");
    let history: serde_json::Value = serde_json::from_str(field(letter, "dead_history")).unwrap();
    let told: Vec<&str> = history.as_array().unwrap().iter().map(|one| one["consumer"].as_str().unwrap()).collect();
    assert_eq!(told, owners);
    let times: Vec<u64> = history
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|one| [one["delivered_ms"].as_u64().unwrap(), one["lost_ms"].as_u64().unwrap()])
        .collect();
    assert!(times.is_sorted() && times[0] > 1_000_000_000_000, "{times:?}");
    let records: Vec<String> = ask!(redis, "KEYS", "worker:deliveries:*");
    assert_eq!(records, Vec::<String>::new());
}

/// Runs a `dead-letters` command; returns its output, or its error message.
async fn command(server: &TestRedis, verb: &str, more: &[&str]) -> Result<String, String> {
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    program.args(["dead-letters", verb]).args(more).env_clear();
    program.env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", server.port().to_string());
    let output = program.output().await.unwrap();
    let [told, trouble] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    match output.status.code() {
        Some(0) => Ok(told),
        Some(1) => {
            assert_eq!(trouble.lines().count(), 1, "{trouble}");
            Err(told + trouble.as_str())
        }
        other => panic!("{other:?}: {told}{trouble}"),
    }
}

/// Dead-letters `tasks` tasks of `a`, delivered six times each.
async fn bury(server: &TestRedis, tasks: usize) -> Vec<String> {
    let mut redis = server.connection().await;
    for n in 0..tasks {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    let ids = taken_by(&mut redis, "lost", "a", tasks).await;
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "lost", 0, &ids, "IDLE", 600_000, "RETRYCOUNT", 6, "JUSTID");
    let worker = Running::start(quick(server, "a"), done);
    reaches(&redis, "a:dead", tasks).await;
    worker.leave().await;
    ids
}

#[tokio::test]
async fn dead_letters_are_listed_replayed_and_deleted() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    bury(&server, 250).await;
    let letters: Vec<String> = entries(&mut redis, "a:dead").await.into_iter().map(|(id, _)| id).collect();

    let told = command(&server, "list", &["--stream", "a", "--limit", "2"]).await.unwrap();
    assert!(told.contains(&format!("{}  query q0  deliveries 6", letters[0])) && !told.contains("query q2 "));
    assert!(told.ends_with("the oldest 2 of 250 dead letters of a; --limit shows more\n"), "{told}");

    let first_ten: Vec<&str> = letters[..10].iter().map(String::as_str).collect();
    let told = command(&server, "drop", &[&["--stream", "a", "--id"], &first_ten[..]].concat()).await.unwrap();
    assert_eq!(told, "10 dead letters of a dropped\n");
    let two = ["--stream", "a", "--id", &letters[10], "--id", &letters[11]];
    assert_eq!(command(&server, "replay", &two).await.unwrap(), "2 replayed into a\n");
    assert_eq!(queries(&mut redis, "a").await, ["q10", "q11"]);
    // They are new tasks without the fields of the dead letter.
    for (_, fields) in entries(&mut redis, "a").await {
        assert!(fields.iter().all(|(name, _)| !name.starts_with("dead_")), "{fields:?}");
        assert_eq!(field(&fields, "workflow"), workflow(&["a", "b"]));
    }
    let rest = ["--stream", "a", "--all"];
    assert_eq!(command(&server, "replay", &rest).await.unwrap(), "238 replayed into a\n");
    let worker = Running::start(quick(&server, "a").task_limit(50), done);
    reaches(&redis, "b", 240).await;
    worker.leave().await;
    assert_eq!(command(&server, "list", &["--stream", "a"]).await.unwrap(), "no dead letters of a\n");
    assert_eq!(command(&server, "drop", &rest).await.unwrap(), "0 dead letters of a dropped\n");
}

#[tokio::test]
async fn show_prints_everything_about_a_dead_letter() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let ids = bury(&server, 2).await;
    let letters = entries(&mut redis, "a:dead").await;
    let told = command(&server, "show", &["--stream", "a", "--id", &letters[1].0]).await.unwrap();
    for part in [
        &letters[1].0,
        &format!("entry {} in group consumer", ids[1]),
        "deliveries  6\n",
        "6. lost since 20",
        "its owner has no heartbeat",
        "query_id    q1\n",
        &format!("workflow    {}\n", workflow(&["a", "b"])),
    ] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
    assert!(!told.contains("q0") && !told.contains("dead_"), "{told}");
    let all = command(&server, "show", &["--stream", "a", "--all"]).await.unwrap();
    assert!(all.contains("q0") && all.contains("q1"), "{all}");
}

#[tokio::test]
async fn a_replayed_task_keeps_its_idempotency_key() {
    let server = TestRedis::start();
    let redis = server.connection().await;
    let ids = bury(&server, 1).await;
    command(&server, "replay", &["--stream", "a", "--all"]).await.unwrap();
    let seen = Seen::default();
    let note = |seen: Seen| {
        move |task: Task| {
            seen.note(&task);
            async { Ok(Answer::forward()) }
        }
    };
    let first = Running::start(quick(&server, "a"), note(seen.clone()));
    let second = Running::start(quick(&server, "b"), note(seen.clone()));
    reaches(&redis, "finish_query", 1).await;
    first.leave().await;
    second.leave().await;
    let keys: Vec<String> = seen.tasks().iter().map(|task| task.idempotency_key().to_string()).collect();
    assert_eq!(keys, [format!("a/{}/0", ids[0]), format!("a/{}/1", ids[0])]);
    assert_eq!(seen.tasks()[0].fence().deliveries, 1);
}

#[tokio::test]
async fn dead_letter_commands_report_errors_in_one_line() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    bury(&server, 3).await;
    let letters: Vec<String> = entries(&mut redis, "a:dead").await.into_iter().map(|(id, _)| id).collect();

    let half = ["--stream", "a", "--id", &letters[0], "7-7"];
    let told = command(&server, "drop", &half).await.unwrap_err();
    assert!(told.contains("1 dead letter of a deleted") && told.contains("no such dead letter of a: 7-7"), "{told}");

    // A dead letter that cannot be replayed is kept.
    let _: Value = ask!(redis, "DEL", "a");
    let _: Value = ask!(redis, "SET", "a", "no stream");
    let told = command(&server, "replay", &["--stream", "a", "--all"]).await.unwrap_err();
    assert!(told.contains("0 replayed into a") && told.contains("WRONGTYPE"), "{told}");
    assert_eq!(length(&mut redis, "a:dead").await, 2);

    let _: Value = ask!(redis, "SET", "text:dead", "no stream");
    let told = command(&server, "list", &["--stream", "text"]).await.unwrap_err();
    assert!(told.contains("text:dead is not a dead-letter stream"), "{told}");
    let told = command(&server, "list", &["--stream", ""]).await.unwrap_err();
    assert!(told.contains("name is empty"), "{told}");
    let told = command(&server, "list", &["--stream", "a", "--redis-port", "99999"]).await.unwrap_err();
    assert!(told.contains("REDIS_PORT is \"99999\": expected a port"), "{told}");
    server.kill().unwrap();
    let told = command(&server, "list", &["--stream", "a"]).await.unwrap_err();
    assert!(told.contains("cannot connect to Redis at 127.0.0.1"), "{told}");
}

#[tokio::test]
async fn an_entry_stays_pending_if_redis_refuses_the_dead_letter() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask!(redis, "SET", "a:dead", "no stream");
    add(&mut redis, "q", &["a"]).await;
    let ids = taken_by(&mut redis, "dead", "a", 1).await;
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "dead", 0, &ids, "IDLE", 600_000, "RETRYCOUNT", 6, "JUSTID");
    let worker = Running::start(quick(&server, "a"), done);
    add(&mut redis, "other", &["a"]).await;
    reaches(&redis, "finish_query", 1).await;
    assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (1, 1));
    let _: Value = ask!(redis, "DEL", "a:dead");
    reaches(&redis, "a:dead", 1).await;
    worker.leave().await;
}
