//! Dead consumers with phantom pending entries: dry run and run agree, or explain the difference.

use super::*;

#[tokio::test]
async fn a_dry_run_and_the_run_agree_on_phantoms_and_messages() {
    let mut world = World::new().await;
    // All entries deleted; some; none.
    for (stream, count) in [("emptied", 5), ("mixed", 4), ("whole", 2)] {
        for n in 0..count {
            world.add(stream, &format!("q{n}")).await;
        }
        let ids = world.deliver(stream, "dead", count).await;
        let gone = match stream {
            "emptied" => &ids[..],
            "mixed" => &ids[1..3],
            _ => &[],
        };
        for id in gone {
            world.text(&format!("XDEL {stream} {id}")).await;
        }
    }
    let monitor = world.monitor(&[]).await;
    monitor.until("all streams are known", LIMIT, |s| s["streams"]["whole"]["pending"] == 2).await;
    let path = |dry_run: bool| format!("/api/admin/reclaim_dead_consumers?min_idle_seconds=0&dry_run={dry_run}");
    let figures = |answer: &Value| {
        json!([
            answer["dropped_messages"],
            answer["phantom_pending"],
            answer["consumers_removed"],
            answer["by_stream"],
            answer["not_dropped"],
            answer["consumers_kept"],
            answer["complete"],
        ])
    };
    let (status, dry) = post(&monitor, &path(true), json!({})).await;
    assert_eq!(status, 200, "{dry}");
    let expected = json!([4, 7, 3, {
        "emptied": {"messages": 0, "phantom_pending": 5, "consumers": 1},
        "mixed": {"messages": 2, "phantom_pending": 2, "consumers": 1},
        "whole": {"messages": 2, "phantom_pending": 0, "consumers": 1},
    }, {}, {}, true]);
    assert_eq!(figures(&dry), expected, "{dry}");
    let (_, listed) = monitor.get("/api/admin/dead_consumers?min_idle_seconds=0").await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let mixed = listed["consumers"].as_array().unwrap().iter().find(|one| one["stream"] == "mixed").unwrap();
    assert_eq!((&mixed["stuck"], &mixed["phantom_pending"]), (&json!(4), &json!(2)));
    let (status, run) = post(&monitor, &path(false), json!({})).await;
    assert_eq!((status, figures(&run)), (200, expected), "{run}");
    for stream in ["emptied", "mixed", "whole"] {
        assert!(world.pending(stream).await.is_empty(), "{stream}");
    }
    // A phantom has no payload to store; all other messages can be restored.
    let (_, bin) = monitor.get("/api/admin/recycle_bin").await;
    let bin: Value = serde_json::from_str(&bin).unwrap();
    assert_eq!(bin["entries"].as_array().unwrap().len(), 4, "{bin}");
}
