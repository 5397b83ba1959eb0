//! Entries that exceed the delivery limit, and the `dead-letters` commands.

use redis::Value;
use shepherd_monitor::fleet::message::BinState;
use shepherd_monitor::operator::{Sources, recycle};
use shepherd_monitor::postgres::recycle_bin::{self, Filter};
use shepherd_monitor::postgres::{audit, connection, migrate};

use super::*;
use crate::support::postgres::TestDatabase;

#[tokio::test]
async fn an_entry_beyond_the_delivery_limit_is_dead_lettered_with_its_history() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let id = add(&mut redis, "poison", &["a"]).await;
    let mut owners = Vec::new();
    for delivery in 1..=3 {
        let calls = Calls::default();
        let victim = Running::start(quick(&server, "a").delivery_limit(2), {
            let calls = calls.clone();
            move |task| {
                calls.note(&task);
                std::future::pending()
            }
        });
        eventually("it is delivered", PATIENCE, || async { calls.tasks().len() == 1 }).await;
        let fence = calls.tasks()[0].fence().clone();
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
    let consumers: Vec<&str> =
        history.as_array().unwrap().iter().map(|one| one["consumer"].as_str().unwrap()).collect();
    assert_eq!(consumers, owners);
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

/// A `dead-letters` command that only reads; returns its output, or its error message.
async fn command(server: &TestRedis, verb: &str, more: &[&str]) -> Result<String, String> {
    change(server, "postgres://postgres@127.0.0.1:1/none", verb, more).await
}

/// A migrated database, for commands that change something.
async fn migrated() -> TestDatabase {
    let database = TestDatabase::create();
    migrate::run(&database.url(), PATIENCE).await.unwrap();
    database
}

/// A `dead-letters` command; returns its output, or its error message.
async fn change(server: &TestRedis, database: &str, verb: &str, more: &[&str]) -> Result<String, String> {
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    program.args(["dead-letters", verb]).args(more).env_clear().env("DATABASE_URL", database);
    program.env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", server.port().to_string());
    let output = program.output().await.unwrap();
    let [printed, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    match output.status.code() {
        Some(0) => Ok(printed),
        Some(1) => {
            assert_eq!(errors.lines().count(), 1, "{errors}");
            Err(printed + errors.as_str())
        }
        other => panic!("{other:?}: {printed}{errors}"),
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
    let (server, database) = (TestRedis::start(), migrated().await);
    let mut redis = server.connection().await;
    bury(&server, 250).await;
    let letters: Vec<String> = entries(&mut redis, "a:dead").await.into_iter().map(|(id, _)| id).collect();

    let printed = command(&server, "list", &["--stream", "a", "--limit", "2"]).await.unwrap();
    assert!(printed.contains(&format!("{}  query q0  deliveries 6", letters[0])) && !printed.contains("query q2 "));
    assert!(printed.ends_with("the oldest 2 of 250 dead letters of a; --limit shows more\n"), "{printed}");

    let first_ten: Vec<&str> = letters[..10].iter().map(String::as_str).collect();
    let ten = [&["--stream", "a", "--id"], &first_ten[..]].concat();
    let printed = change(&server, &database.url(), "drop", &ten).await.unwrap();
    assert!(printed.starts_with("10 dead letters of a moved to the recycle bin (batch "), "{printed}");
    let two = ["--stream", "a", "--id", &letters[10], "--id", &letters[11]];
    assert_eq!(change(&server, &database.url(), "replay", &two).await.unwrap(), "2 replayed into a\n");
    assert_eq!(queries(&mut redis, "a").await, ["q10", "q11"]);
    // They are new tasks without the fields of the dead letter.
    for (_, fields) in entries(&mut redis, "a").await {
        assert!(fields.iter().all(|(name, _)| !name.starts_with("dead_")), "{fields:?}");
        assert_eq!(field(&fields, "workflow"), workflow(&["a", "b"]));
    }
    let rest = ["--stream", "a", "--all"];
    assert_eq!(change(&server, &database.url(), "replay", &rest).await.unwrap(), "238 replayed into a\n");
    let worker = Running::start(quick(&server, "a").task_limit(50), done);
    reaches(&redis, "b", 240).await;
    worker.leave().await;
    assert_eq!(command(&server, "list", &["--stream", "a"]).await.unwrap(), "no dead letters of a\n");
    let printed = change(&server, &database.url(), "drop", &rest).await.unwrap();
    assert_eq!(printed, "0 dead letters of a moved to the recycle bin\n");
}

#[tokio::test]
async fn changes_at_the_command_line_are_audited_and_deleted_dead_letters_can_be_restored() {
    let (server, database) = (TestRedis::start(), migrated().await);
    let mut redis = server.connection().await;
    bury(&server, 3).await;
    let before = entries(&mut redis, "a:dead").await;
    let all = ["--stream", "a", "--all"];
    // Without Postgres, nothing is deleted or replayed.
    for verb in ["drop", "replay"] {
        let printed = command(&server, verb, &all).await.unwrap_err();
        assert!(printed.contains("nothing was changed: the audit log cannot be written"), "{printed}");
    }
    assert_eq!(entries(&mut redis, "a:dead").await, before);

    change(&server, &database.url(), "drop", &all).await.unwrap();
    assert_eq!(length(&mut redis, "a:dead").await, 0);
    let sources = Sources {
        redis: shepherd_monitor::redis_streams::connection::pool(&server.url(), PATIENCE).unwrap(),
        postgres: connection::pool(&database.url(), PATIENCE).unwrap(),
    };
    let binned = recycle_bin::rows(&sources.postgres, &Filter::default(), 10).await.unwrap();
    assert!(binned.len() == 3 && binned.iter().all(|row| row.state == BinState::Binned), "{binned:?}");
    let restored = recycle::restore(&sources, &Filter::default(), "bo").await.unwrap();
    assert_eq!((restored.restored, length(&mut redis, "a:dead").await), (3, 3));
    change(&server, &database.url(), "replay", &all).await.unwrap();

    let rows = audit::newest(&sources.postgres, audit::Shown::Changes, None, 10).await.unwrap();
    let actions: Vec<&str> = rows.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["retry messages", "move messages to recycle bin"]);
    for row in &rows {
        assert_eq!((row.address.as_str(), row.outcome.as_str()), ("command line", "done"), "{row:?}");
        assert_eq!((&row.parameters["messages"], &row.result.as_ref().unwrap()["done"]), (&3.into(), &3.into()));
    }
    assert_eq!(rows[0].who, binned[0].who);
    let id = String::from_utf8(std::process::Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    assert!(rows[0].who.starts_with(id.trim()), "{} {id}", rows[0].who);
}

#[tokio::test]
async fn show_prints_everything_about_a_dead_letter() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let ids = bury(&server, 2).await;
    let letters = entries(&mut redis, "a:dead").await;
    let printed = command(&server, "show", &["--stream", "a", "--id", &letters[1].0]).await.unwrap();
    for part in [
        &letters[1].0,
        &format!("entry {} in group consumer", ids[1]),
        "deliveries  6\n",
        "delivery 6: lost, 20",
        "the owner has no heartbeat",
        "query_id    q1\n",
        &format!("workflow    {}\n", workflow(&["a", "b"])),
    ] {
        assert!(printed.contains(part), "{part} is missing in:\n{printed}");
    }
    assert!(!printed.contains("q0") && !printed.contains("dead_"), "{printed}");
    let all = command(&server, "show", &["--stream", "a", "--all"]).await.unwrap();
    assert!(all.contains("q0") && all.contains("q1"), "{all}");
}

#[tokio::test]
async fn a_replayed_task_keeps_its_idempotency_key() {
    let (server, database) = (TestRedis::start(), migrated().await);
    let redis = server.connection().await;
    let ids = bury(&server, 1).await;
    change(&server, &database.url(), "replay", &["--stream", "a", "--all"]).await.unwrap();
    let calls = Calls::default();
    let note = |calls: Calls| {
        move |task: Task| {
            calls.note(&task);
            async { Ok(Answer::forward()) }
        }
    };
    let first = Running::start(quick(&server, "a"), note(calls.clone()));
    let second = Running::start(quick(&server, "b"), note(calls.clone()));
    reaches(&redis, "finish_query", 1).await;
    first.leave().await;
    second.leave().await;
    let keys: Vec<String> = calls.tasks().iter().map(|task| task.idempotency_key().to_string()).collect();
    assert_eq!(keys, [format!("a/{}/0", ids[0]), format!("a/{}/1", ids[0])]);
    assert_eq!(calls.tasks()[0].fence().deliveries, 1);
}

#[tokio::test]
async fn dead_letter_commands_report_errors_in_one_line() {
    let (server, database) = (TestRedis::start(), migrated().await);
    let mut redis = server.connection().await;
    bury(&server, 3).await;
    let letters: Vec<String> = entries(&mut redis, "a:dead").await.into_iter().map(|(id, _)| id).collect();

    let half = ["--stream", "a", "--id", &letters[0], "7-7"];
    let printed = change(&server, &database.url(), "drop", &half).await.unwrap_err();
    assert!(
        printed.contains("1 dead letter of a moved to the recycle bin")
            && printed.contains("no such dead letter of a: 7-7"),
        "{printed}"
    );

    // A dead letter that cannot be replayed is kept.
    let _: Value = ask!(redis, "DEL", "a");
    let _: Value = ask!(redis, "SET", "a", "no stream");
    let printed = change(&server, &database.url(), "replay", &["--stream", "a", "--all"]).await.unwrap_err();
    assert!(printed.contains("0 replayed into a") && printed.contains("WRONGTYPE"), "{printed}");
    assert_eq!(length(&mut redis, "a:dead").await, 2);

    let _: Value = ask!(redis, "SET", "text:dead", "no stream");
    let printed = command(&server, "list", &["--stream", "text"]).await.unwrap_err();
    assert!(printed.contains("text:dead is not a dead-letter stream"), "{printed}");
    let printed = command(&server, "list", &["--stream", ""]).await.unwrap_err();
    assert!(printed.contains("name is empty"), "{printed}");
    let printed = command(&server, "list", &["--stream", "a", "--redis-port", "99999"]).await.unwrap_err();
    assert!(printed.contains("REDIS_PORT is \"99999\": expected a port"), "{printed}");
    server.kill().unwrap();
    let printed = command(&server, "list", &["--stream", "a"]).await.unwrap_err();
    assert!(printed.contains("cannot connect to Redis at 127.0.0.1"), "{printed}");
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
