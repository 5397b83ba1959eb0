//! Property tests of alert lifecycles and notifications.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::alert_manager::{AlertManager, AlertManagerSettings};
use super::file;
use super::lifecycle::{Alert, Identity, Kind, Phase, Policy, Seen, Step};
use super::message::{About, span};
use super::rule::{RuleSet, Severity};
use super::silences::Silence;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::snapshot::{Snapshot, SourceStatus};
use crate::fleet::worker_type::TypeState;
use crate::pages::states::{self, Fleet};

const NOW: f64 = 1_795_456_871.0;

fn manager(rules: &str) -> AlertManager {
    let settings =
        AlertManagerSettings { grace_until: 0.0, debounce: 5.0, channels: vec!["slack".into(), "email:a@b".into()] };
    AlertManager::new(settings, rule_set(rules))
}

fn rule_set(rules: &str) -> Arc<RuleSet> {
    Arc::new(file::read(rules).unwrap_or_else(|mistakes| panic!("{mistakes:?}")))
}

fn fleet(down: &[&str], state: TypeState) -> Snapshot {
    let mut fleet = Fleet::new(NOW);
    for name in ["a", "b", "c"] {
        fleet.add(name, 3, 10, 5);
    }
    for i in 0..30 {
        fleet.add(&format!("w{i:02}"), 1, 10, 0);
    }
    for name in down {
        fleet.change(name, |w, _| (w.state, w.alive) = (state, 0));
    }
    fleet.finish()
}

/// Returns the titles of the notifications until `now`.
fn told(manager: &mut AlertManager, now: f64) -> Vec<String> {
    manager.due(now).0.messages.into_iter().map(|outgoing| outgoing.message.title).collect()
}

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![Just(Seen::Missing), Just(Seen::Clear(Some(1.0))), Just(Seen::Holds(Some(9.0)))]
}

fn alert() -> Alert {
    let identity =
        Identity { key: "k".into(), rule: "k".into(), subject: None, kind: Kind::Rule, severity: Severity::Warning };
    Alert::begin(identity, None, 0.0, None)
}

proptest! {
    #[test]
    fn alerts_fire_after_their_duration_and_resolve_on_a_good_reading(
        steps in proptest::collection::vec((seen(), 0.1..20.0_f64), 1..60), duration in 0_u64..60,
    ) {
        let policy = Policy { duration: Duration::from_secs(duration), ..Policy::AT_ONCE };
        let (mut alert, mut now) = (alert(), 0.0);
        for (seen, later) in steps {
            now += later;
            let before = alert.clone();
            match alert.step(seen, policy, now) {
                Step::Fired => {
                    prop_assert_eq!(before.phase, Phase::Pending);
                    prop_assert!(matches!(seen, Seen::Holds(_)));
                    prop_assert!(now - alert.since >= policy.duration.as_secs_f64());
                }
                Step::Resolved | Step::Dropped => prop_assert!(matches!(seen, Seen::Clear(_))),
                Step::FiredAgain => prop_assert!(before.told.is_some() && !before.over_told),
                Step::Same | Step::Pending => {}
            }
            if seen == Seen::Missing {
                prop_assert_eq!(&alert, &before, "missing data changes nothing");
            }
            if matches!(alert.phase, Phase::Resolved) || alert.step(Seen::Missing, policy, now) != Step::Same {
                break;
            }
        }
    }

    #[test]
    fn alerts_are_notified_once_and_resolved_to_the_same_channels(
        ticks in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 8), 1..40), restart_at in 0_usize..40,
    ) {
        let rules = "rules: [{name: high, type: threshold, metric: xlen, stream: 'w0*', threshold: 100, duration: 3s, cooldown: 10s}]";
        let mut manager = manager(rules);
        let mut open: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut now = NOW;
        let calm = std::iter::repeat_n(vec![false; 8], 300);
        for (i, high) in ticks.into_iter().chain(calm).enumerate() {
            now += 3.0;
            if i == restart_at {
                let kept: Vec<Alert> = manager.alerts().values().cloned().collect();
                manager = self::manager(rules);
                manager.restore(kept);
            }
            let mut fleet = Fleet::new(now);
            for (n, high) in high.iter().enumerate() {
                fleet.add(&format!("w{n:02}"), 1, 10, if *high { 500 } else { 0 });
            }
            manager.advance(&fleet.finish(), now);
            for outgoing in manager.due(now).0.messages {
                for key in outgoing.message.keys {
                    match outgoing.message.about {
                        About::StillFiring => prop_assert!(open.contains_key(&key)),
                        About::Resolved => prop_assert_eq!(open.remove(&key), Some(outgoing.channels.clone())),
                        _ => prop_assert_eq!(open.insert(key, outgoing.channels.clone()), None),
                    }
                }
            }
        }
        prop_assert!(open.is_empty(), "nobody heard that these are over: {:?}", open.keys());
        prop_assert!(manager.alerts().values().all(Alert::is_done));
    }

    #[test]
    fn workers_lost_within_the_window_are_one_complete_notification(
        arrivals in proptest::collection::vec(0.0..4.9_f64, 1..30),
    ) {
        let mut manager = manager("rules: []");
        let mut arrivals: Vec<(f64, String)> = arrivals.into_iter().enumerate().map(|(i, at)| (at, format!("w{i:02}"))).collect();
        arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut down: Vec<&str> = Vec::new();
        let mut messages = Vec::new();
        for (at, name) in &arrivals {
            down.push(name);
            manager.advance(&fleet(&down, TypeState::Crashed), NOW + at);
            messages.extend(manager.due(NOW + at).0.messages);
        }
        prop_assert!(messages.is_empty(), "the window is open");
        messages.extend(manager.due(NOW + 15.0).0.messages);
        prop_assert_eq!(messages.len(), 1);
        prop_assert_eq!(messages[0].message.keys.len(), down.len());
        prop_assert_eq!(messages[0].message.alerts.len(), down.len());
    }
}

#[test]
fn shipped_file_has_the_fourteen_rules_of_the_fleet() {
    let rules = rule_set(include_str!("../../alerts.yaml"));
    let said: Vec<String> = rules
        .rules
        .iter()
        .map(|r| {
            format!("{}: {}, {}, every {}", r.name, r.watches(), r.severity.as_str(), span(r.cooldown.as_secs_f64()))
        })
        .collect();
    let backlog = |name: &str, of: &str, above: u32| {
        format!("{name}_backlog: xlen of {of} above {above} for 1 m, warning, every 10 m")
    };
    let down =
        |name: &str, of: &str| format!("{name}_down: workers_alive of {of} below 1 for 30 s, critical, every 10 m");
    let whole = |name: &str, watches: &str, severity: &str| format!("{name}: {watches}, {severity}, every 10 m");
    assert_eq!(
        said,
        [
            backlog("aragorn", "aragorn.lookup", 500),
            backlog("arax", "arax", 500),
            backlog("bte", "bte.lookup", 500),
            backlog("sipr", "sipr", 500),
            backlog("finish_query", "finish_query", 200),
            down("aragorn_lookup", "aragorn.lookup"),
            down("arax", "arax"),
            down("bte_lookup", "bte.lookup"),
            down("finish_query", "finish_query"),
            whole("oldest_callback_too_old", "oldest_callback_age above 600 for 30 s", "warning"),
            whole("callbacks_pending_high", "callbacks_pending above 100 for 2 m", "warning"),
            whole("pg_connection_saturation", "pg_connection_count above 150 for 1 m", "warning"),
            whole("pg_disk_almost_full", "disk_used_pct at or above 80 for 2 m", "warning"),
            whole("pg_disk_critically_full", "disk_used_pct at or above 90 for 1 m", "critical"),
        ]
    );
}

/// Every form of rule of the older monitor: a snapshot value at the limit and one beyond it.
#[test]
fn rules_of_the_older_monitor_keep_their_meaning() {
    let snapshot = |value: u32| {
        let mut fleet = Fleet::new(NOW);
        fleet.add("a", u64::from(value < 10), 10, value.into());
        fleet.change("a", |_, s| (s.xlen, s.pending) = (Some(value.into()), Some(value.into())));
        let mut snapshot = fleet.finish();
        let postgres = &mut snapshot.postgres;
        (postgres.callbacks_pending, postgres.connection_count) = (Some(value.into()), Some(value.into()));
        (postgres.oldest_callback_age_sec, postgres.disk_used_pct) = (Some(value.into()), Some(value.into()));
        snapshot
    };
    type Fires = fn(u32) -> bool;
    let above: Fires = |value| value > 10;
    let at_least: Fires = |value| value >= 10;
    for (form, fires) in [
        ("type: threshold, metric: xlen, stream: a, threshold: 10", above),
        ("metric: xlen, stream: a, threshold: 10", above),
        ("type: threshold, metric: callbacks_pending, threshold: 10", above),
        ("type: threshold, metric: pg_connection_count, threshold: '10'", above),
        ("type: queue_pending, stream: a, threshold: 10", above),
        ("type: oldest_callback_age, threshold: 10.0", above),
        ("type: db_capacity, threshold: 10", at_least),
        ("type: heartbeat_lost, worker: a", at_least),
        ("type: heartbeat_lost, worker: never.seen", |_| true),
        ("type: heartbeat_lost, worker: a, threshold: 3", at_least),
    ] {
        for value in [9, 10, 11] {
            let mut manager = manager(&format!("rules: [{{name: r, {form}}}]"));
            manager.advance(&snapshot(value), NOW);
            let firing = manager.alerts().get("r").is_some_and(|alert| alert.phase == Phase::Firing);
            assert_eq!(firing, fires(value), "{form} at {value}");
        }
    }
    // Missing and empty fields.
    let rules = rule_set("rules: [{name: 7, metric: xlen, stream: a, threshold: 1, message: ''}]");
    let rule = &rules.rules[0];
    assert_eq!((rule.name.as_str(), &rule.message, rule.severity), ("7", &None, Severity::Warning));
    assert_eq!((rule.duration.as_secs(), rule.cooldown.as_secs(), rule.repeats), (0, 600, true));
}

#[test]
fn rules_fire_after_exactly_their_duration_and_restart_after_gaps() {
    let rules = "rules: [{name: high, metric: xlen, stream: a, threshold: 100, duration: 60s}]";
    let mut manager = manager(rules);
    for (at, high, fires) in [
        (0.0, true, false),
        (59.9, true, false),
        (60.0, false, false),
        (61.0, true, false),
        (120.9, true, false),
        (121.0, true, true),
    ] {
        manager.advance(&length("a", high, NOW + at), NOW + at);
        assert_eq!(!told(&mut manager, NOW + at).is_empty(), fires, "after {at} s");
    }
}

/// Returns a fleet in which a stream has 500 entries, or none.
fn length(stream: &str, high: bool, now: f64) -> Snapshot {
    let mut fleet = Fleet::new(now);
    fleet.add(stream, 3, 10, if high { 500 } else { 0 });
    fleet.finish()
}

const REPEATED: &str = "rules: [{name: high, metric: xlen, stream: a, threshold: 100, cooldown: 10m}, {name: once, metric: xlen, stream: a, threshold: 100, cooldown: 10m, repeat: never}]";

#[test]
fn firing_alerts_repeat_after_each_cooldown_unless_disabled() {
    let mut manager = manager(REPEATED);
    let mut sent = Vec::new();
    for minute in 0..35 {
        let now = NOW + f64::from(minute) * 60.0;
        manager.advance(&length("a", true, now), now);
        sent.extend(told(&mut manager, now).into_iter().map(|title| (minute, title)));
        assert!(told(&mut manager, now + 1.0).is_empty(), "once a snapshot at most");
    }
    let still = |minutes: u32| (minutes, format!("Still firing for {minutes} m: high: xlen of a is 500 (above 100)"));
    assert_eq!(sent.len(), 5, "{sent:?}");
    assert_eq!(sent[2..], [still(10), still(20), still(30)]);
    // The resolution is sent once, and nothing is repeated after it.
    let now = NOW + 36.0 * 60.0;
    manager.advance(&length("a", false, now), now);
    assert_eq!(told(&mut manager, now), ["Resolved after 36 m: high", "Resolved after 36 m: once"]);
    manager.advance(&length("a", false, now + 3600.0), now + 3600.0);
    assert!(told(&mut manager, now + 3600.0).is_empty());
}

#[test]
fn silenced_acknowledged_or_unknown_alerts_are_not_repeated() {
    let silence = |acknowledges: bool, until: f64| Silence {
        id: "1".into(),
        rule: "high".into(),
        subject: "*".into(),
        owner: "me".into(),
        reason: String::new(),
        starts: NOW + 1.0,
        until,
        acknowledges,
    };
    let mut blind = length("a", true, NOW);
    blind.redis.source = SourceStatus::Down { since: NOW, trouble: SourceTrouble::new(TroubleKind::Unreachable, "x") };
    for (silences, at, snapshot, expected) in [
        (vec![], 600.0, length("a", true, NOW), 1),
        (vec![silence(false, NOW + 1000.0)], 999.0, length("a", true, NOW), 0),
        (vec![silence(false, NOW + 1000.0)], 1000.0, length("a", true, NOW), 1),
        (vec![silence(true, NOW + 9e9)], 6000.0, length("a", true, NOW), 0),
        (vec![], 600.0, blind, 0),
        (vec![], 599.9, length("a", true, NOW), 0),
    ] {
        let mut manager = manager("rules: [{name: high, metric: xlen, stream: a, threshold: 100, cooldown: 10m}]");
        manager.advance(&length("a", true, NOW), NOW);
        assert_eq!(told(&mut manager, NOW).len(), 1);
        manager.set_silences(silences.clone());
        manager.advance(&snapshot, NOW + at);
        assert_eq!(told(&mut manager, NOW + at).len(), expected, "{silences:?} {at}");
    }
}

#[test]
fn groups_repeat_together_with_only_firing_alerts() {
    let rules = "rules: [{name: high, metric: xlen, stream: 'w0*', threshold: 100, cooldown: 10m}]";
    let high = |names: &[&str]| {
        let mut fleet = Fleet::new(NOW);
        for name in ["w01", "w02", "w03"] {
            fleet.add(name, 1, 10, if names.contains(&name) { 500 } else { 0 });
        }
        fleet.finish()
    };
    let mut manager = manager(rules);
    manager.advance(&high(&["w01", "w02", "w03"]), NOW);
    let first = manager.due(NOW).0.messages;
    manager.advance(&high(&["w01", "w03"]), NOW + 300.0);
    assert_eq!(told(&mut manager, NOW + 300.0), ["Resolved after 5 m: high:w02"]);
    manager.advance(&high(&["w01", "w03"]), NOW + 600.0);
    let again = manager.due(NOW + 600.0).0.messages;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].message.title, "Still firing for 10 m: high: 2 alerts");
    assert_eq!((&again[0].message.thread, again[0].message.keys.len()), (&first[0].message.id, 2));
}

#[test]
fn lost_heartbeats_join_the_group_and_workers_are_listed_once() {
    let rules = "rules: [{name: a_down, type: heartbeat_lost, worker: a, severity: critical}, {name: gone, type: heartbeat_lost, worker: gone, severity: critical}]";
    let mut manager = manager(rules);
    let snapshot = fleet(&["a", "b"], TypeState::Crashed);
    manager.advance(&snapshot, NOW);
    assert!(manager.due(NOW + 4.9).0.messages.is_empty(), "all of them wait for the debounce window");
    let due = manager.due(NOW + 5.0).0.messages;
    let lines: Vec<&str> = due[0].message.alerts.iter().map(|line| line.key.as_str()).collect();
    assert_eq!((due.len(), due[0].message.title.as_str()), (1, "3 workers down"));
    assert_eq!(lines, ["gone", "worker_crashed:a", "worker_crashed:b"]);
    assert_eq!(due[0].message.keys, ["a_down", "gone", "worker_crashed:a", "worker_crashed:b"]);
    // An alert that resolves within the window is still sent, as in the older monitor, and then its resolution.
    let mut manager = self::manager(rules);
    manager.advance(&fleet(&[], TypeState::Alive), NOW);
    manager.advance(&fleet(&[], TypeState::Alive), NOW + 3.0);
    assert_eq!(told(&mut manager, NOW + 5.0), ["gone: worker gone has no live heartbeats"]);
}

#[test]
fn rate_limited_alerts_are_summarized_and_their_resolution_is_sent() {
    let rules = "rules: [{name: high, metric: xlen, stream: 'w*', threshold: 100, severity: critical, cooldown: 1h}]\ngroup_by: [stream]";
    let high = |from: usize, to: usize| {
        let mut fleet = Fleet::new(NOW);
        for i in 0..30 {
            fleet.add(&format!("w{i:02}"), 1, 10, if (from..to).contains(&i) { 500 } else { 0 });
        }
        fleet.finish()
    };
    let mut manager = manager(rules);
    let mut sent: Vec<(f64, About, Vec<String>)> = Vec::new();
    let mut at = |manager: &mut AlertManager, after: f64, snapshot: &Snapshot| {
        manager.advance(snapshot, NOW + after);
        let messages = manager.due(NOW + after).0.messages;
        sent.extend(messages.into_iter().map(|out| (after, out.message.about, out.message.keys)));
    };
    at(&mut manager, 0.0, &high(0, 20));
    // The rate limit is reached: two fire for thirty seconds.
    at(&mut manager, 10.0, &high(0, 22));
    at(&mut manager, 40.0, &high(0, 20));
    for after in [60.0, 63.0, 130.0] {
        at(&mut manager, after, &high(0, 20));
    }
    for key in ["high:w20", "high:w21"] {
        let of: Vec<(f64, About)> = sent
            .iter()
            .filter(|(_, _, keys)| keys.iter().any(|k| k == key))
            .map(|(at, about, _)| (*at, *about))
            .collect();
        assert_eq!(of, [(60.0, About::Firing), (63.0, About::Resolved)], "{key}: {sent:?}");
    }
}

#[test]
fn broken_channel_alert_survives_restarts_and_resolves_when_it_accepts() {
    let mut first = manager("rules: []");
    first.channel("slack", Some("404"));
    first.advance(&fleet(&[], TypeState::Alive), NOW);
    let out = first.due(NOW).0.messages;
    assert_eq!(out[0].channels, ["email:a@b"], "the broken channel is not told of itself");
    let kept: Vec<Alert> = first.alerts().values().cloned().collect();
    // Restarted, or another instance: the alert stays until the channel answers, and is sent only to the other channels.
    let mut second = manager("rules: []");
    second.replace(kept.clone());
    second.advance(&fleet(&[], TypeState::Alive), NOW + 30.0);
    assert!(told(&mut second, NOW + 30.0).is_empty());
    second.channel("slack", None);
    second.advance(&fleet(&[], TypeState::Alive), NOW + 60.0);
    assert_eq!(told(&mut second, NOW + 60.0), ["Resolved after 1 m: channel_broken:slack"]);
    // The first instance is the leader again: its earlier state of the channel is discarded.
    first.replace(second.alerts().values().cloned().collect());
    first.advance(&fleet(&[], TypeState::Alive), NOW + 90.0);
    assert!(told(&mut first, NOW + 90.0).is_empty());
    // A channel that is not configured any more.
    let mut third = AlertManager::new(
        AlertManagerSettings { grace_until: 0.0, debounce: 5.0, channels: vec!["email:a@b".into()] },
        Arc::default(),
    );
    third.replace(kept);
    third.advance(&fleet(&[], TypeState::Alive), NOW + 60.0);
    assert_eq!(told(&mut third, NOW + 60.0), ["Resolved after 1 m: channel_broken:slack"]);
}

#[test]
fn broken_channel_is_notified_through_working_ones_only() {
    let quiet = fleet(&[], TypeState::Alive);
    let mut both = manager("rules: []");
    both.channel("slack", Some("404"));
    both.channel("email:a@b", Some("535"));
    both.advance(&quiet, NOW);
    assert!(told(&mut both, NOW).is_empty(), "no channel works");
    both.channel("email:a@b", None);
    both.advance(&quiet, NOW + 60.0);
    let out = both.due(NOW + 60.0).0.messages;
    assert_eq!(out.len(), 1, "{out:?}");
    assert_eq!(
        (out[0].message.keys.as_slice(), &out[0].channels[..]),
        (&["channel_broken:slack".to_owned()][..], &["email:a@b".to_owned()][..])
    );
    // It works again before it could be reported: nothing is sent.
    let mut again = manager("rules: []");
    again.channel("slack", Some("404"));
    again.channel("email:a@b", Some("535"));
    again.advance(&quiet, NOW);
    again.channel("slack", None);
    assert_eq!(
        again.due(NOW + 1.0).0.messages.iter().map(|out| out.message.keys.clone()).collect::<Vec<_>>(),
        [["channel_broken:email:a@b"]]
    );
    again.channel("email:a@b", None);
    again.advance(&quiet, NOW + 2.0);
    assert_eq!(told(&mut again, NOW + 2.0), ["Resolved after 2 s: channel_broken:email:a@b"]);
}

#[test]
fn changed_rules_end_old_alerts_and_fire_new_ones() {
    let rule =
        |stream: &str| format!("rules: [{{name: high, metric: xlen, stream: {stream}, threshold: 3, cooldown: 0}}]");
    for (before, key, after, fires) in [
        ("'[a]'", "high:a", "a", "high"),
        ("a", "high", "'[a]'", "high:a"),
        ("a", "high", "b", "high"),
        ("'[ab]'", "high:a", "'[b]'", "high:b"),
    ] {
        let mut manager = manager(&rule(before));
        manager.advance(&fleet(&[], TypeState::Alive), NOW);
        assert!(manager.due(NOW).0.messages.iter().any(|out| out.message.keys.iter().any(|k| k == key)), "{before}");
        let kept: Vec<Alert> = manager.alerts().values().cloned().collect();
        // The same across a restart with the new file.
        let mut manager = self::manager(&rule(after));
        manager.replace(kept);
        let mut ended = false;
        for i in 1..4 {
            let now = NOW + f64::from(i) * 3.0;
            manager.advance(&fleet(&[], TypeState::Alive), now);
            for out in manager.due(now).0.messages {
                ended |= out.message.about == About::Resolved && out.message.keys.iter().any(|k| k == key);
            }
        }
        assert!(ended, "{before} to {after}: {:?}", manager.alerts().keys());
        let firing: Vec<&Alert> = manager.alerts().values().filter(|alert| alert.phase == Phase::Firing).collect();
        let subject = Some(after.trim_matches(['\'', '[', ']']));
        assert_eq!(firing.len(), 1, "{before} to {after}: {firing:?}");
        assert_eq!((firing[0].key.as_str(), firing[0].subject.as_deref()), (fires, subject));
    }
}

#[test]
fn alerts_of_rules_are_unchanged_while_rules_are_unknown() {
    let mut first = manager("rules: [{name: high, metric: xlen, stream: a, threshold: 3}]");
    first.advance(&fleet(&[], TypeState::Alive), NOW);
    assert_eq!(told(&mut first, NOW).len(), 1);
    let kept: Vec<Alert> = first.alerts().values().cloned().collect();
    let settings = AlertManagerSettings { grace_until: 0.0, debounce: 5.0, channels: vec!["slack".into()] };
    let mut second = AlertManager::new(settings, Arc::default());
    second.replace(kept);
    second.advance(&fleet(&[], TypeState::Alive), NOW + 30.0);
    assert!(told(&mut second, NOW + 30.0).is_empty());
    second.set_rules(rule_set("rules: []"));
    second.advance(&fleet(&[], TypeState::Alive), NOW + 60.0);
    assert_eq!(told(&mut second, NOW + 60.0), ["Resolved after 1 m: high"]);
}

#[test]
fn steps_of_the_clock_do_not_change_timers() {
    let rules = "rules: [{name: high, metric: xlen, stream: a, threshold: 100, duration: 60s, cooldown: 10m}]";
    for step in [-7200.0, 7200.0, -30.0] {
        let mut manager = manager(rules);
        let mut clock = NOW;
        let mut sent = Vec::new();
        for second in 0..2000 {
            let now = clock + f64::from(second);
            // Thirty seconds before it fires, and a while after.
            if [30, 100].contains(&second) {
                manager.shift_timers(step);
                clock += step;
                continue;
            }
            manager.advance(&length("a", true, now), now);
            sent.extend(told(&mut manager, now).into_iter().map(|_| second));
        }
        assert_eq!(sent, [60, 660, 1260, 1860], "a step of {step} s");
    }
}

#[test]
fn timers_from_a_fast_clock_are_capped() {
    let rules = "rules: [{name: high, metric: xlen, stream: a, threshold: 100, duration: 60s, cooldown: 10m}]";
    for (written_after, expected) in [(0.0, [60, 660, 1260]), (60.0, [600, 1200, 1800])] {
        let mut ahead = manager(rules);
        for second in [0.0, written_after] {
            let now = NOW + 7200.0 + second;
            ahead.advance(&length("a", true, now), now);
            ahead.due(now);
        }
        let mut manager = manager(rules);
        manager.replace(ahead.alerts().values().cloned().collect());
        let mut sent = Vec::new();
        for second in 0..1810 {
            let now = NOW + f64::from(second);
            manager.advance(&length("a", true, now), now);
            sent.extend(told(&mut manager, now).into_iter().map(|_| second));
        }
        assert_eq!(sent, expected, "written after {written_after} s");
    }
}

/// The next event of an incident, its monitors and its users.
#[derive(Debug, Clone, Copy)]
enum Move {
    /// Advances the time, seconds.
    Wait(u32),
    /// The condition starts to hold, or ends.
    Turn,
    /// The leader restarts from the written state.
    Restart,
    /// Another instance resumes from the written state, with this clock offset.
    NewLeader(i32),
    /// The leader decides but is deposed before it writes, and another instance decides.
    DeposedWhileDeciding,
    Silence(u32),
    Acknowledge,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (1_u32..400).prop_map(Move::Wait),
        3 => Just(Move::Turn),
        1 => Just(Move::Restart),
        1 => (-2_i32..3).prop_map(Move::NewLeader),
        1 => Just(Move::DeposedWhileDeciding),
        1 => (10_u32..300).prop_map(Move::Silence),
        1 => Just(Move::Acknowledge),
    ];
    proptest::collection::vec(one, 1..60)
}

/// Several instances and the written state, with one rule and one stream.
struct World {
    written: BTreeMap<String, Alert>,
    sent: BTreeMap<String, (f64, About)>,
    log: Vec<(f64, About)>,
    leader: AlertManager,
    silences: Vec<Silence>,
    high: bool,
    now: f64,
}

impl World {
    const RULES: &str = "rules: [{name: high, metric: xlen, stream: a, threshold: 100, duration: 10s, cooldown: 100s}]";

    fn new() -> Self {
        let (written, sent) = (BTreeMap::new(), BTreeMap::new());
        let leader = manager(Self::RULES);
        Self { written, sent, log: Vec::new(), leader, silences: Vec::new(), high: false, now: NOW }
    }

    /// Evaluates one snapshot; the decision is written completely or not at all. Repeated messages have the same ID.
    fn tick(&mut self, writes: bool) {
        let acknowledged = self.leader.set_silences(self.silences.clone());
        let snapshot = length("a", self.high, self.now);
        let changes = self.leader.advance(&snapshot, self.now);
        let (due, told) = self.leader.due(self.now);
        if !writes {
            return;
        }
        let changed = acknowledged.into_iter().chain(changes.into_iter().map(|change| change.alert)).chain(told);
        self.written.extend(changed.map(|alert| (alert.key.clone(), alert)));
        for out in due.messages {
            if self.sent.insert(out.message.id.clone(), (self.now, out.message.about)).is_none() {
                self.log.push((self.now, out.message.about));
            }
        }
    }

    fn go_on_from_what_is_written(&mut self) {
        self.leader = manager(Self::RULES);
        self.leader.replace(self.written.values().cloned().collect());
    }

    fn silence(&mut self, acknowledges: bool, until: f64) {
        self.silences.push(Silence {
            id: String::new(),
            rule: "high".into(),
            subject: "*".into(),
            owner: "me".into(),
            reason: String::new(),
            starts: self.now,
            until,
            acknowledges,
        });
    }
}

proptest! {
    #[test]
    fn each_occurrence_is_notified_repeated_and_resolved_across_leaders(
        moves in moves(),
    ) {
        let mut world = World::new();
        let mut quiet: Vec<(f64, f64)> = Vec::new();
        // What a fast clock sent may have a later time.
        let mut sent_before_acknowledged = 0;
        for one in moves.into_iter().chain([Move::Wait(1)]) {
            match one {
                Move::Wait(seconds) => for _ in 0..seconds {
                    world.now += 1.0;
                    world.tick(true);
                },
                Move::Turn => world.high = !world.high,
                Move::Restart => world.go_on_from_what_is_written(),
                Move::NewLeader(ahead) => {
                    world.go_on_from_what_is_written();
                    // Clocks of different machines agree within a few seconds.
                    world.now += f64::from(ahead);
                }
                Move::DeposedWhileDeciding => {
                    world.now += 1.0;
                    world.tick(false);
                    world.go_on_from_what_is_written();
                    world.tick(true);
                }
                Move::Silence(seconds) => {
                    let until = world.now + f64::from(seconds);
                    world.silence(false, until);
                    // A message from a fast clock was sent earlier.
                    let sent = world.log.last().map_or(world.now, |(at, _)| at.max(world.now));
                    quiet.push((sent, until));
                }
                Move::Acknowledge => {
                    if world.leader.alerts().get("high").is_some_and(Alert::is_active) {
                        world.silence(true, f64::INFINITY);
                        sent_before_acknowledged = world.log.len();
                    }
                }
            }
        }
        // Firing, any number of repeats, then resolved; a cooldown between two messages that it fires.
        let mut open = false;
        let mut last = f64::NEG_INFINITY;
        for (index, (at, about)) in world.log.iter().enumerate() {
            match about {
                About::Resolved => prop_assert!(std::mem::replace(&mut open, false), "an end of nothing: {:?}", world.log),
                _ => {
                    let begins = *about == About::Firing;
                    prop_assert_eq!(begins, !open, "{:?}", world.log);
                    open = true;
                    prop_assert!(at - last >= 100.0 - 4.0, "within the cooldown: {:?}", world.log);
                    prop_assert!(!quiet.iter().any(|(from, until)| from < at && at < until), "silenced: {:?}", world.log);
                    let by = world.leader.alerts().get("high").and_then(|alert| alert.acknowledged.as_ref());
                    let may_be_sent = |by: f64| by >= *at || index < sent_before_acknowledged;
                    prop_assert!(by.is_none_or(|by| may_be_sent(by.at) || *at < world.leader.alerts()["high"].since), "acknowledged");
                    last = *at;
                }
            }
        }
        // Without silences, firing is sent within its duration and a cooldown, and resolved later.
        world.silences.clear();
        world.high = true;
        let acknowledged = world.leader.alerts().get("high").is_some_and(|alert| alert.is_active() && alert.acknowledged.is_some());
        for _ in 0..450 {
            world.now += 1.0;
            world.tick(true);
        }
        let since = world.now - 230.0;
        let recent = world.log.iter().filter(|(at, about)| *at > since && about.is_firing()).count();
        prop_assert!(if acknowledged { recent == 0 } else { (2..=3).contains(&recent) }, "{recent}: {:?}", world.log);
        world.high = false;
        for _ in 0..450 {
            world.now += 1.0;
            world.tick(true);
        }
        prop_assert!(world.written.values().all(Alert::is_done));
        let heard = world.log.last().is_some_and(|(_, about)| *about == About::Resolved);
        prop_assert!(heard || !world.log.iter().any(|(_, about)| about.is_firing()), "{:?}", world.log);
    }
}

#[test]
fn parses_durations_in_common_notations() {
    for (text, seconds) in
        [("60", 60.0), ("60s", 60.0), ("5m", 300.0), ("1h", 3600.0), ("500ms", 0.5), (" 5 M ", 300.0), ("1e2s", 100.0)]
    {
        assert_eq!(file::duration(text), Some(Duration::from_secs_f64(seconds)));
    }
    let example = "
rules:
  - name: aragorn_backlog        # unique; the key of its cooldown
    type: threshold
    metric: xlen
    stream: aragorn.lookup
    threshold: 500
    duration: 60
    severity: warning
    message: \"text for people\"
    anything: else
";
    let rule = &rule_set(example).rules[0];
    assert_eq!((rule.duration.as_secs(), rule.cooldown.as_secs()), (60, 600));
}

/// Invalid files, and the position (line, column) and words of the error.
const BROKEN: &[(&str, (u64, u64), &str)] = &[
    ("rules: [", (1, 8), "unclosed bracket"),
    ("rules:\n\t- name: x", (2, 2), "tabs disallowed"),
    ("rules:\n  - name: 'x", (2, 11), "invalid YAML"),
    ("rules: {}", (1, 8), "rules is a mapping: expected a list"),
    ("rules: text", (1, 8), "rules is a string: expected a list"),
    ("- name: x", (1, 1), "the file is a list: expected a mapping"),
    ("just text", (1, 1), "the file is a string: expected a mapping"),
    ("rule:\n  - name: x", (1, 1), "did you mean rules?"),
    ("rules:\n  - x", (2, 5), "a rule is a string: expected a mapping"),
    ("rules:\n  - type: threshold\n    metric: pg_connection_count\n    threshold: 1", (2, 5), "missing field `name`"),
    ("rules:\n  - name:\n    type: oldest_callback_age\n    threshold: 1", (2, 5), "missing field `name`"),
    (
        "rules:\n  - name: [a]\n    type: oldest_callback_age\n    threshold: 1",
        (2, 11),
        "name is a list: expected a string",
    ),
    ("rules:\n  - name: ''\n    type: oldest_callback_age\n    threshold: 1", (2, 11), "name is empty"),
    ("rules:\n  - name: x", (2, 5), "missing field `metric`: expected xlen"),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    repeat: sometimes",
        (5, 13),
        "repeat is \"sometimes\": expected never, cooldown",
    ),
    ("rules:\n  - name: x\n    type: treshold", (3, 11), "type is \"treshold\": expected threshold"),
    ("rules:\n  - name: x\n    type: 5", (3, 11), "type is 5: expected threshold"),
    ("rules:\n  - name: x\n    type: threshold\n    threshold: 5", (2, 5), "missing field `metric`"),
    (
        "rules:\n  - name: x\n    type: threshold\n    metric: xlenn\n    stream: s\n    threshold: 5",
        (4, 13),
        "did you mean xlen?",
    ),
    (
        "rules:\n  - name: x\n    type: threshold\n    metric: speed\n    threshold: 5",
        (4, 13),
        "expected one of xlen, pending",
    ),
    ("rules:\n  - name: x\n    type: threshold\n    metric: xlen\n    threshold: 5", (2, 5), "missing field `stream`"),
    ("rules:\n  - name: x\n    type: queue_pending\n    threshold: 5", (2, 5), "missing field `stream`"),
    ("rules:\n  - name: x\n    type: heartbeat_lost", (2, 5), "missing field `worker`"),
    ("rules:\n  - name: x\n    type: threshold\n    metric: xlen\n    stream: s", (2, 5), "missing field `threshold`"),
    (
        "rules:\n  - name: x\n    type: threshold\n    metric: xlen\n    stream: s\n    threshold: many",
        (6, 16),
        "threshold is \"many\": expected a number",
    ),
    (
        "rules:\n  - name: x\n    type: threshold\n    metric: xlen\n    stream: s\n    threshold: [5]",
        (6, 16),
        "threshold is a list: expected a number",
    ),
    (
        "rules:\n  - name: x\n    type: threshold\n    metric: xlen\n    stream: s\n    threshold: .nan",
        (6, 16),
        "non-finite float",
    ),
    (
        "rules:\n  - name: x\n    type: threshold\n    metric: xlen\n    stream: s\n    treshold: 5",
        (6, 5),
        "did you mean threshold?",
    ),
    (
        "rules:\n  - name: x\n    type: threshold\n    metric: xlen\n    streem: s\n    threshold: 5",
        (5, 5),
        "did you mean stream?",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    duration: soon",
        (5, 15),
        "duration is \"soon\": expected a duration such as 60, 60s, 5m, 1h or 500ms",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    duration: 5 minutes",
        (5, 15),
        "expected a duration",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    duration: -5",
        (5, 15),
        "duration is -5",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    cooldown: never",
        (5, 15),
        "cooldown is \"never\"",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    duraton: 5s",
        (5, 5),
        "did you mean duration?",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    severity: urgent",
        (5, 15),
        "severity is \"urgent\": expected info, warning, critical",
    ),
    ("rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    severity: 1", (5, 15), "severity is 1"),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    serverity: info",
        (5, 5),
        "did you mean severity?",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    message: {a: b}",
        (5, 14),
        "message is a mapping: expected a string",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    missing: zero",
        (5, 14),
        "expected keep, fires, resolves",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    channels: [pager]",
        (5, 16),
        "channel is \"pager\": expected slack",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    labels: [a]",
        (5, 13),
        "labels is a list",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    labels:\n      team: [a]",
        (6, 13),
        "labels is a list: expected a string",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    above: 5\n    below: 3",
        (5, 12),
        "`below` cannot be combined",
    ),
    ("rules:\n  - name: x\n    type: db_capacity\n    threshold: 180", (4, 16), "expected a percentage from 0 to 100"),
    (
        "rules:\n  - name: x\n    type: db_capacity\n    threshold: 80%",
        (4, 16),
        "threshold is \"80%\": expected a number",
    ),
    ("rules:\n  - name: x\n    type: queue_pending\n    stream: 'a[*'\n    threshold: 5", (4, 13), "expected a glob"),
    (
        "rules:\n  - {name: x, type: oldest_callback_age, threshold: 5}\n  - {name: x, type: oldest_callback_age, threshold: 6}",
        (3, 12),
        "first used in line 2",
    ),
    ("rules:\n  - name: x\n    name: y\n    type: oldest_callback_age\n    threshold: 5", (3, 5), ""),
    (
        "rules:\n  - name: x\n    type: source_down\n    source: mysql",
        (4, 13),
        "expected redis, postgres, authentication",
    ),
    (
        "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: 5\n    change_over: fast",
        (5, 18),
        "change_over is \"fast\"",
    ),
    ("group_by: [rule, colour]", (1, 18), "group_by is \"colour\": expected rule, severity, stream"),
    ("routes:\n  - severity: critical", (2, 5), "missing field `channels`"),
    ("routes:\n  - severity: [critical, loud]\n    channels: slack", (2, 26), "severity is \"loud\""),
    ("routes:\n  - rule: '{a'\n    channels: slack", (2, 11), "expected a glob"),
    ("maintenance:\n  - name: x", (2, 5), "missing time"),
    ("maintenance:\n  - daily: 25:00-26:00", (2, 12), "expected hours in UTC"),
    (
        "maintenance:\n  - from: tomorrow\n    until: 2026-12-01T04:00:00Z",
        (2, 11),
        "expected one such as 2026-12-01T02:00:00Z",
    ),
    (
        "maintenance:\n  - from: 2026-12-01T04:00:00Z\n    until: 2026-12-01T02:00:00Z",
        (3, 12),
        "`until` must be after `from`",
    ),
    ("maintenance:\n  - daily: 02:00-04:00\n    days: [someday]", (3, 12), "day is \"someday\""),
];

#[test]
fn errors_have_the_position_and_the_expected_value() {
    assert!(BROKEN.len() >= 50);
    let mut untold = Vec::new();
    for (text, (line, column), said) in BROKEN {
        let mistakes = file::read(text).map(|_| ()).expect_err(text);
        let hit = mistakes.iter().any(|m| (m.line, m.column) == (*line, *column) && m.said.contains(said));
        if !hit {
            untold.push(format!("{text}\n expected {line}:{column} {said:?}, told {mistakes:?}\n"));
        }
    }
    assert!(untold.is_empty(), "{}", untold.join("\n"));
}

#[test]
fn all_errors_of_a_file_are_reported_at_once() {
    let text = "rules:\n  - name: x\n    type: oldest_callback_age\n    threshold: many\n    duration: soon\n    severity: urgent";
    let lines: Vec<u64> = file::read(text).map(|_| ()).unwrap_err().iter().map(|mistake| mistake.line).collect();
    assert_eq!(lines, [4, 5, 6]);
}

#[test]
fn eighteen_lost_workers_are_one_notification_apart_from_others() {
    let mut manager = manager("rules: [{name: backlog, type: threshold, metric: xlen, stream: a, threshold: 3}]");
    let names: Vec<String> = (0..18).map(|i| format!("w{i:02}")).collect();
    let down: Vec<&str> = names.iter().map(String::as_str).collect();
    manager.advance(&fleet(&down, TypeState::Crashed), NOW);
    assert_eq!(told(&mut manager, NOW), ["backlog: xlen of a is 5 (above 3)"]);
    let (due, _) = manager.due(NOW + 4.0);
    assert!(due.messages.is_empty());
    assert_eq!(due.next, Some(NOW + 5.0));
    let (due, _) = manager.due(NOW + 5.0);
    assert_eq!(due.messages.len(), 1);
    assert_eq!(due.messages[0].message.title, "18 workers down");
    assert!(
        names.iter().all(|name| due.messages[0].message.alerts.iter().any(|line| line.subject.as_ref() == Some(name)))
    );
    manager.advance(&fleet(&[], TypeState::Crashed), NOW + 60.0);
    assert_eq!(told(&mut manager, NOW + 66.0), ["Resolved: 18 workers running again"]);
}

#[test]
fn storms_end_with_a_correct_count() {
    let rules: String = (0..360)
        .map(|i| format!("\n  - {{name: r{i}, type: threshold, metric: xlen, stream: a, threshold: 3}}"))
        .collect();
    let mut manager = manager(&format!("rules:{rules}"));
    manager.advance(&fleet(&[], TypeState::Alive), NOW);
    let (due, _) = manager.due(NOW);
    assert_eq!(due.messages.len(), 20);
    assert!(
        due.messages[19].message.title.contains("341 alerts: ")
            && due.messages[19].message.title.ends_with("and 340 more")
    );
    assert_eq!(due.messages.iter().map(|outgoing| outgoing.message.keys.len()).sum::<usize>(), 360, "none is lost");
}

#[test]
fn a_crash_inside_the_grace_is_told_after_it_if_still_true_and_not_if_recovered() {
    for (recovers, expected) in [(false, vec!["Worker a crashed".to_owned()]), (true, Vec::new())] {
        let settings = AlertManagerSettings { grace_until: NOW + 90.0, debounce: 5.0, channels: vec!["slack".into()] };
        let mut manager = AlertManager::new(settings, Arc::default());
        manager.advance(&fleet(&["a"], TypeState::Crashed), NOW + 10.0);
        assert!(told(&mut manager, NOW + 60.0).is_empty());
        let after = if recovers { fleet(&[], TypeState::Alive) } else { fleet(&["a"], TypeState::Crashed) };
        manager.advance(&after, NOW + 91.0);
        assert_eq!(told(&mut manager, NOW + 96.0), expected);
    }
}

#[test]
fn worker_that_returns_within_the_window_is_sent_and_resolved() {
    let mut manager = manager("rules: []");
    manager.advance(&fleet(&["a"], TypeState::ScaledDown), NOW);
    manager.advance(&fleet(&[], TypeState::Alive), NOW + 3.0);
    assert_eq!(told(&mut manager, NOW + 5.0), ["Worker a scaled to zero"]);
    manager.advance(&fleet(&[], TypeState::Alive), NOW + 6.0);
    assert_eq!(told(&mut manager, NOW + 11.0), ["Resolved after 6 s: worker a is running again"]);
}

#[test]
fn flapping_workers_are_sent_once_per_cooldown() {
    let mut manager = manager("rules: []");
    let (mut now, mut count) = (NOW, 0);
    for i in 0..60 {
        let down: &[&str] = if i % 2 == 0 { &["a"] } else { &[] };
        manager.advance(&fleet(down, TypeState::Crashed), now);
        count += told(&mut manager, now).len();
        now += 9.0;
    }
    assert!(count <= 2, "{count} messages in nine minutes of flapping");
    manager.advance(&fleet(&["a"], TypeState::Crashed), now);
    let told: Vec<String> = (0..70).flat_map(|i| told(&mut manager, now + f64::from(i) * 10.0)).collect();
    let firing = manager.alerts().values().filter(|alert| alert.phase == Phase::Firing && alert.told.is_some()).count();
    assert_eq!(firing, 1, "{told:?}");
}

#[test]
fn silenced_alerts_are_sent_after_the_silence_acknowledged_ones_not() {
    let mut manager = manager("rules: []");
    let silence = Silence {
        id: "1".into(),
        rule: "worker_*".into(),
        subject: "a".into(),
        owner: "me".into(),
        reason: "works".into(),
        starts: NOW,
        until: NOW + 100.0,
        acknowledges: false,
    };
    let acknowledged =
        Silence { rule: "worker_crashed:b".into(), subject: "*".into(), acknowledges: true, ..silence.clone() };
    manager.advance(&fleet(&["a", "b"], TypeState::Crashed), NOW);
    assert_eq!(manager.set_silences(vec![silence, acknowledged]).len(), 1);
    assert!(told(&mut manager, NOW + 50.0).is_empty());
    assert_eq!(told(&mut manager, NOW + 100.0), ["Worker a crashed"]);
}

#[test]
fn only_alerts_about_redis_change_while_it_is_unreachable() {
    let mut manager = manager("rules: [{name: down, type: heartbeat_lost, worker: a}]");
    manager.advance(&fleet(&["b"], TypeState::Crashed), NOW);
    assert_eq!(told(&mut manager, NOW + 5.0), ["Worker b crashed"]);
    let mut blind = fleet(&[], TypeState::Crashed);
    blind.workers.clear();
    blind.streams.clear();
    let trouble = SourceTrouble::new(TroubleKind::Unreachable, "connection refused");
    blind.redis.source = SourceStatus::Down { since: NOW, trouble };
    manager.advance(&blind, NOW + 10.0);
    manager.advance(&blind, NOW + 25.0);
    assert_eq!(told(&mut manager, NOW + 40.0), ["Redis unreachable: connection refused"]);
}

#[test]
fn every_rule_type_evaluates_its_subject() {
    let snapshot = states::trouble(NOW);
    for (rule, key) in [
        ("type: threshold, metric: xlen, stream: aragorn.lookup, threshold: 500", "r"),
        ("type: threshold, metric: 'xlen:aragorn.lookup', threshold: 500", "r"),
        ("type: threshold, metric: backlog, worker: 'aragorn.*', threshold: 500", "r:aragorn.lookup"),
        ("type: heartbeat_lost, worker: sipr", "r"),
        ("type: heartbeat_lost, worker: never.seen", "r"),
        ("type: queue_pending, stream: aragorn.lookup, threshold: 13", "r"),
        ("type: lost_workers, worker: 'bte*'", "r:bte.lookup"),
        ("type: hung_workers, worker: '*'", "r:merge_message"),
        ("type: drain_time, stream: aragorn.lookup, threshold: 1000", "r"),
        ("type: lag_seconds, stream: aragorn.lookup, threshold: 200", "r"),
        ("type: threshold, metric: pg_connection_count, above: 1", "r"),
        ("type: threshold, metric: workers_alive, worker: bte.lookup, below: 3", "r"),
        ("type: no_data, metric: xlen, stream: never.seen", "r"),
    ] {
        let mut manager = manager(&format!("rules: [{{name: r, {rule}}}]"));
        manager.advance(&snapshot, NOW);
        manager.advance(&snapshot, NOW + 1.0);
        let firing: Vec<&String> =
            manager.alerts().values().filter(|a| a.rule == "r" && a.phase == Phase::Firing).map(|a| &a.key).collect();
        assert!(firing.iter().any(|k| *k == key), "{rule}: {firing:?}");
    }
}

#[test]
fn routes_select_channels_for_alerts_and_their_resolution() {
    let mut manager = manager(
        "
rules: [{name: backlog, type: threshold, metric: xlen, stream: a, threshold: 3}]
routes:
  - {severity: critical, channels: [slack, email]}
  - {rule: 'back*', channels: email}
",
    );
    manager.advance(&fleet(&["b"], TypeState::Crashed), NOW);
    let due = manager.due(NOW + 6.0).0.messages;
    let channels: Vec<&[String]> = due.iter().map(|outgoing| outgoing.channels.as_slice()).collect();
    assert_eq!(channels, [&["slack".to_owned(), "email:a@b".to_owned()][..], &["email:a@b".to_owned()][..]]);
}

#[test]
fn losses_are_sent_while_others_run_but_not_after_a_crash() {
    let lost = |alive_since: f64| {
        let mut fleet = Fleet::new(NOW);
        fleet.add("a", 2, 10, 0);
        fleet.change("a", |w, _| {
            (w.lost, w.lost_open) = (1, 1);
            (w.lost_at, w.state_changed_at) = (Some(NOW - 5.0), Some(alive_since));
        });
        fleet.finish()
    };
    let mut manager = manager("rules: []");
    manager.advance(&lost(NOW - 3.0), NOW);
    assert!(told(&mut manager, NOW).is_empty());
    manager.advance(&lost(NOW - 100.0), NOW);
    assert_eq!(told(&mut manager, NOW), ["a: 1 lost (heartbeat expired), 2 running"]);
}

#[test]
fn replaced_losses_are_no_alert_after_a_restart() {
    let mut fleet = Fleet::new(NOW);
    fleet.add("a", 2, 10, 0);
    fleet.change("a", |w, _| {
        (w.lost, w.lost_open) = (1, 0);
        (w.lost_at, w.state_changed_at) = (Some(NOW - 5.0), Some(NOW - 100.0));
    });
    let mut manager = manager("rules: []");
    manager.advance(&fleet.finish(), NOW);
    assert!(told(&mut manager, NOW).is_empty());
}

#[test]
fn type_that_stopped_unobserved_is_an_alert() {
    let mut manager = manager("rules: []");
    manager.advance(&fleet(&["b"], TypeState::Unknown), NOW);
    assert_eq!(told(&mut manager, NOW + 6.0), ["b went to 0 while no monitor was running (was 3)"]);
}

#[test]
fn alerts_of_removed_rules_resolve() {
    let mut manager = manager("rules: [{name: backlog, type: threshold, metric: xlen, stream: a, threshold: 3}]");
    manager.advance(&fleet(&[], TypeState::Alive), NOW);
    assert_eq!(told(&mut manager, NOW).len(), 1);
    manager.set_rules(rule_set("rules: []"));
    manager.advance(&fleet(&[], TypeState::Alive), NOW + 30.0);
    assert_eq!(told(&mut manager, NOW + 30.0), ["Resolved after 30 s: backlog"]);
}

#[test]
fn simultaneous_alerts_are_grouped_as_configured() {
    let rules = "
rules:
  - {name: length, type: threshold, metric: xlen, stream: '[ab]', threshold: 3}
  - {name: late, type: threshold, metric: backlog, worker: '[ab]', threshold: 3, severity: critical}
  - {name: clients, type: threshold, metric: capacity, worker: a, threshold: 3}
";
    for (by, expected) in [
        ("", [vec!["late:a", "late:b"], vec!["clients"], vec!["length:a", "length:b"]].to_vec()),
        ("group_by: rule", [vec!["late:a", "late:b"], vec!["clients"], vec!["length:a", "length:b"]].to_vec()),
        ("group_by: severity", [vec!["late:a", "late:b"], vec!["clients", "length:a", "length:b"]].to_vec()),
        ("group_by: [stream]", [vec!["late:a", "clients", "length:a"], vec!["late:b", "length:b"]].to_vec()),
        (
            "group_by: [rule, stream]",
            [vec!["late:a"], vec!["late:b"], vec!["clients"], vec!["length:a"], vec!["length:b"]].to_vec(),
        ),
        ("group_by: []", [vec!["late:a", "late:b", "clients", "length:a", "length:b"]].to_vec()),
    ] {
        let mut manager = manager(&format!("{rules}{by}"));
        manager.advance(&fleet(&[], TypeState::Alive), NOW);
        let messages = manager.due(NOW).0.messages;
        let keys: Vec<Vec<&str>> =
            messages.iter().map(|outgoing| outgoing.message.keys.iter().map(String::as_str).collect()).collect();
        assert_eq!(keys, expected, "{by}");
        // Alerts that were sent together resolve together.
        manager.set_rules(rule_set("rules: []"));
        manager.advance(&fleet(&[], TypeState::Alive), NOW + 30.0);
        let ends: usize = manager.due(NOW + 30.0).0.messages.iter().map(|outgoing| outgoing.message.keys.len()).sum();
        assert_eq!(ends, expected.iter().map(Vec::len).sum::<usize>(), "{by}");
    }
}

#[test]
fn flapping_rules_are_damped_and_resolved_when_stable() {
    let rules =
        "rules: [{name: high, type: threshold, metric: xlen, stream: a, threshold: 100, cooldown: 0, repeat: never}]";
    let seen = |high: bool, now: f64| {
        let mut fleet = Fleet::new(now);
        fleet.add("a", 3, 10, if high { 500 } else { 0 });
        fleet.finish()
    };
    let mut manager = manager(rules);
    let (mut now, mut titles) = (NOW, Vec::new());
    for i in 0..120 {
        manager.advance(&seen(i % 2 == 0, now), now);
        titles.extend(told(&mut manager, now));
        now += 9.0;
    }
    // The first two resolutions are sent at once; the third is held back while the alert flaps.
    assert_eq!(titles.len(), 5, "{titles:?}");
    assert!(titles[4].starts_with("high: "));
    let over: Vec<(f64, String)> = (0..30)
        .flat_map(|i| {
            let now = now + f64::from(i) * 9.0;
            manager.advance(&seen(false, now), now);
            told(&mut manager, now).into_iter().map(|title| (now, title)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(over.len(), 1, "{over:?}");
    assert!(over[0].1.starts_with("Resolved after") && over[0].0 - now >= 45.0, "{over:?}");
}

#[test]
fn alerts_in_a_maintenance_window_are_sent_after_it_if_still_firing() {
    // NOW is 23 November 2026, 18:01:11 UTC, a Monday.
    let mut manager = manager(
        "
rules:
  - {name: length, type: threshold, metric: xlen, stream: '[ab]', threshold: 3}
maintenance:
  - {name: disks, from: 2026-11-23T18:00:00Z, until: 2026-11-23T18:05:00Z, rule: length, stream: a}
  - {daily: '18:00-18:05', days: [mon], rule: worker_*, stream: c}
  - {daily: '18:00-18:05', days: [tue]}
",
    );
    manager.advance(&fleet(&["b", "c"], TypeState::Crashed), NOW);
    assert_eq!(told(&mut manager, NOW), ["length: xlen of b is 5 (above 3)"]);
    assert_eq!(told(&mut manager, NOW + 10.0), ["Worker b crashed"]);
    let later = NOW + 600.0;
    manager.advance(&fleet(&["b", "c"], TypeState::Crashed), later);
    assert_eq!(
        told(&mut manager, later),
        [
            "Worker c crashed",
            "length: xlen of a is 5 (above 3)",
            "Still firing for 10 m: length: xlen of b is 5 (above 3)"
        ]
    );
}
