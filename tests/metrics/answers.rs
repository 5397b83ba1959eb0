//! `/metrics` of a monitor that watches a real fleet, and what promtool says to it.

use super::*;

#[tokio::test]
async fn streams_have_the_exporters_names_and_labels_and_a_lag_that_is_not_known_is_absent() {
    let ground = Ground::new(&[]).await;
    let mut connection = ground.connection().await;
    for command in [
        "XGROUP CREATE orders billing 0 MKSTREAM",
        "XGROUP CREATE orders shipping 0",
        "XADD orders 1-1 f v",
        "XADD orders 2-1 f v",
        "XADD orders 3-1 f v",
        "XREADGROUP GROUP billing alice COUNT 2 STREAMS orders >",
    ] {
        run(&mut connection, command).await;
    }
    // So many on either side of the group's position that they are not counted to the end.
    for n in 1..=400 {
        run(&mut connection, &format!("XADD many {n}-1 f v")).await;
    }
    run(&mut connection, "XGROUP CREATE many far 350-1").await;
    run(&mut connection, "XGROUP CREATE many middle 200-1").await;
    run(&mut connection, "SET orders:not-a-stream x").await;
    let found = until(&ground.monitor, "the streams are there", |samples| {
        value(samples, "redis_stream_length", &[("stream", "many")]) == Some(400.0)
            && value(samples, "redis_stream_groups", &[("stream", "many")]) == Some(2.0)
            && value(samples, "redis_stream_group_consumers", &[("group", "billing")]) == Some(1.0)
    })
    .await;
    let of = |name: &str, labels: &[(&str, &str)]| value(&found, name, labels);
    let orders = [("db", "db0"), ("stream", "orders")];
    let billing = [orders[0], orders[1], ("group", "billing")];
    let alice = [billing[0], billing[1], billing[2], ("consumer", "alice")];
    assert_eq!(of("redis_stream_length", &orders), Some(3.0));
    assert_eq!(of("redis_stream_groups", &orders), Some(2.0));
    assert_eq!(of("redis_stream_group_messages_pending", &billing), Some(2.0));
    assert_eq!(of("redis_stream_group_lag", &billing), Some(1.0));
    assert_eq!(of("redis_stream_group_entries_read", &billing), Some(2.0));
    assert_eq!(of("redis_stream_group_last_delivered_id", &billing), Some(2.0));
    assert_eq!(of("redis_stream_group_consumer_messages_pending", &alice), Some(2.0));
    assert!(of("redis_stream_group_consumer_idle_seconds", &alice).unwrap() < 60.0);
    assert_eq!(of("redis_stream_group_lag", &[orders[0], orders[1], ("group", "shipping")]), Some(3.0));
    // Exactly these labels, as dashboards have them.
    let labels = |name: &str| found.iter().find(|s| s.name == name).unwrap().labels.keys().cloned().collect::<Vec<_>>();
    assert_eq!(labels("redis_stream_length"), ["db", "stream"]);
    assert_eq!(labels("redis_stream_group_lag"), ["db", "group", "stream"]);
    assert_eq!(labels("redis_stream_group_consumer_idle_seconds"), ["consumer", "db", "group", "stream"]);
    // Counted to the end, and not.
    assert_eq!(of("redis_stream_group_lag", &[("group", "far")]), Some(50.0));
    assert_eq!(of("redis_stream_group_lag", &[("group", "middle")]), None);
    assert_eq!(of("redis_stream_group_messages_pending", &[("group", "middle")]), Some(0.0));
    let bound = "shepherd_monitor_stream_group_lag_lower_bound";
    assert_eq!((of(bound, &[("group", "middle")]), of(bound, &[("group", "far")])), (Some(100.0), None));
    assert_eq!(of("shepherd_monitor_backlog", &[("worker_type", "many")]), None);
    assert_eq!(of("shepherd_monitor_backlog", &[("worker_type", "orders")]), Some(5.0));

    // Series go with their consumer.
    run(&mut connection, "XGROUP DELCONSUMER orders billing alice").await;
    let found = until(&ground.monitor, "the consumer is gone", |samples| {
        value(samples, "redis_stream_group_consumers", &[("group", "billing")]) == Some(0.0)
    })
    .await;
    assert!(found.iter().all(|sample| sample.labels.get("consumer").is_none_or(|name| name != "alice")));
    assert_eq!(value(&found, "redis_stream_group_messages_pending", &billing), Some(0.0));
}

#[tokio::test]
async fn the_fleet_its_tasks_and_the_monitor_are_told_in_both_formats_and_promtool_accepts_it() {
    let ground = Ground::new(&[]).await;
    let mut connection = ground.connection().await;
    run(&mut connection, "LPUSH monitor:task_durations:arax 40 60 60 900 700000").await;
    let found = until(&ground.monitor, "workers and tasks are there", |samples| {
        let alive = value(samples, "shepherd_monitor_workers", &[("worker_type", "arax"), ("state", "alive")]);
        let tasks = value(samples, "shepherd_monitor_task_duration_seconds_count", &[("stream", "arax")]);
        let is_there = |name: &str| value(samples, name, &[]).is_some();
        alive == Some(2.0)
            && tasks == Some(5.0)
            && is_there("shepherd_monitor_alerts_leader")
            && is_there("shepherd_monitor_postgres_database_size_bytes")
    })
    .await;
    let of = |name: &str, labels: &[(&str, &str)]| value(&found, name, labels);
    let bucket = |le: &str| of("shepherd_monitor_task_duration_seconds_bucket", &[("stream", "arax"), ("le", le)]);
    assert_eq!([bucket("0.025"), bucket("0.05"), bucket("0.1")], [Some(0.0), Some(1.0), Some(3.0)]);
    assert_eq!([bucket("1.0"), bucket("600.0"), bucket("+Inf")], [Some(4.0), Some(4.0), Some(5.0)]);
    let sum = of("shepherd_monitor_task_duration_seconds_sum", &[("stream", "arax")]).unwrap();
    assert!((sum - 701.06).abs() < 1e-9, "{sum}");
    let state = |state: &str| of("shepherd_monitor_worker_type_state", &[("worker_type", "arax"), ("state", state)]);
    assert_eq!([state("alive"), state("crashed"), state("unknown")], [Some(1.0), Some(0.0), Some(0.0)]);
    assert_eq!(of("shepherd_monitor_capacity", &[("worker_type", "arax")]), Some(20.0));
    assert_eq!(of("shepherd_monitor_utilization_ratio", &[("worker_type", "arax")]), Some(0.0));
    let happened =
        |what: &str| of("shepherd_monitor_transitions_total", &[("worker_type", "arax"), ("transition", what)]);
    assert!(happened("scale_up").unwrap() >= 1.0);
    assert_eq!(happened("consumers_lost"), Some(0.0), "a counter is seen before it grows");
    let sent = [("channel", "webhook"), ("result", "sent")];
    assert_eq!(of("shepherd_monitor_notifications_total", &sent), Some(0.0));
    assert_eq!(of("shepherd_monitor_alerts", &[("state", "firing"), ("severity", "critical")]), Some(0.0));
    assert_eq!(of("shepherd_monitor_source_up", &[("source", "postgres")]), Some(1.0));
    assert!(of("shepherd_monitor_tick_duration_seconds_count", &[]).unwrap() >= 1.0);
    assert_eq!(of("shepherd_monitor_tick_interval_seconds", &[]), Some(0.5));
    assert!(of("shepherd_monitor_last_tick_age_seconds", &[]).unwrap() < 30.0);
    assert_eq!(of("shepherd_monitor_actor_restarts_total", &[("actor", "exporter")]), Some(0.0));
    assert!(of("shepherd_monitor_redis_memory_used_bytes", &[]).unwrap() > 1e5);
    assert!(of("shepherd_monitor_postgres_database_size_bytes", &[]).unwrap() > 1e6);
    assert_eq!(of("shepherd_monitor_postgres_disk_capacity_bytes", &[]), Some(107_374_182_400.0));
    let version = &found.iter().find(|s| s.name == "shepherd_monitor_build_info").unwrap().labels["version"];
    assert_eq!(version, env!("CARGO_PKG_VERSION"));

    let (kind, plain) = asked(&ground.monitor, "*/*").await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(promtool(&["check", "metrics"], &plain), Ok(String::new()));
    // It would say so.
    let counter = plain.replace("shepherd_monitor_workers_lost_total", "shepherd_monitor_workersLost");
    assert!(promtool(&["check", "metrics"], &counter).unwrap_err().contains("workersLost"));

    let (kind, open) = asked(&ground.monitor, OPENMETRICS).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.ends_with("\n# EOF\n") && open.contains("# TYPE shepherd_monitor_build info\n"));
    let names = |text: &str| samples(text).into_iter().map(|s| (s.name, s.labels)).collect::<Vec<_>>();
    // Figures may come between two answers.
    eventually("the formats differ in nothing else", SOON, || async {
        let (plain, open) = (asked(&ground.monitor, "*/*").await.1, asked(&ground.monitor, OPENMETRICS).await.1);
        names(&plain) == names(&open)
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_has_no_figures_and_a_worker_that_is_killed_is_counted() {
    let ground = Ground::new(&[]).await;
    let lost = |samples: &[Sample]| value(samples, "shepherd_monitor_workers_lost_total", &[("worker_type", "arax")]);
    until(&ground.monitor, "two are alive", |samples| {
        value(samples, "shepherd_monitor_workers", &[("worker_type", "arax"), ("state", "alive")]) == Some(2.0)
            && lost(samples) == Some(0.0)
    })
    .await;
    ground._workers[0].send("KILL");
    let found = until(&ground.monitor, "the loss is counted", |samples| lost(samples) == Some(1.0)).await;
    let lost_now = [("worker_type", "arax"), ("state", "lost")];
    assert_eq!(value(&found, "shepherd_monitor_workers", &lost_now), Some(1.0));
    assert_eq!(value(&found, "shepherd_monitor_worker_type_crashes_total", &[("worker_type", "arax")]), Some(0.0));

    ground.redis.stop().unwrap();
    let up = |samples: &[Sample]| value(samples, "shepherd_monitor_source_up", &[("source", "redis")]);
    let found = until(&ground.monitor, "Redis is away", |samples| up(samples) == Some(0.0)).await;
    let frozen = [("source", "redis"), ("state", "frozen")];
    assert_eq!(value(&found, "shepherd_monitor_source_state", &frozen), Some(1.0));
    for sample in &found {
        assert!(!sample.name.starts_with("redis_stream"), "{sample:?}");
        assert!(!sample.name.starts_with("shepherd_monitor_redis"), "{sample:?}");
        assert!(
            !["shepherd_monitor_backlog", "shepherd_monitor_workers"].contains(&sample.name.as_str()),
            "{sample:?}"
        );
    }
    assert_eq!(lost(&found), Some(1.0), "what was counted stays");
    assert!(value(&found, "shepherd_monitor_postgres_connections", &[]).is_some());
    assert_eq!(promtool(&["check", "metrics"], &asked(&ground.monitor, "").await.1), Ok(String::new()));
    let downs = [("source", "redis"), ("transition", "down")];
    until(&ground.monitor, "it is counted", |samples| {
        value(samples, "shepherd_monitor_source_transitions_total", &downs) == Some(1.0)
    })
    .await;
    ground.redis.resume().unwrap();
    let found = until(&ground.monitor, "Redis is back", |samples| up(samples) == Some(1.0)).await;
    assert!(value(&found, "redis_stream_length", &[("stream", "arax")]).is_some());
}

#[tokio::test]
async fn series_per_consumer_can_be_left_out_and_the_database_is_named() {
    let (redis_server, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis_server.connection().await;
    for command in ["SELECT 3", "XGROUP CREATE s g 0 MKSTREAM", "XGROUP CREATECONSUMER s g c"] {
        run(&mut connection, command).await;
    }
    let url = format!("{}3", redis_server.url());
    for (setting, consumers) in [("yes", 1), ("no", 0)] {
        let settings =
            [("REDIS_URL", url.as_str()), ("DATABASE_URL", &database.url()), ("MONITOR_METRICS_PER_CONSUMER", setting)];
        let monitor = Monitor::start(&settings).await;
        let found = until(&monitor, "the group is there", |samples| {
            value(samples, "redis_stream_group_consumers", &[("db", "db3"), ("group", "g")]) == Some(1.0)
        })
        .await;
        let those = |name| found.iter().filter(|sample| sample.name == name).count();
        assert_eq!(those("redis_stream_group_consumer_idle_seconds"), consumers, "{setting}");
        assert_eq!(those("redis_stream_group_consumer_messages_pending"), consumers, "{setting}");
    }
}
