//! Settings and files that are wrong; both servers are away in these tests.

use super::*;

const AWAY: [(&str, &str); 2] =
    [("REDIS_URL", "redis://127.0.0.1:1/"), ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres")];

fn doctor_with(settings: &[(&str, &str)]) -> Said {
    doctor(&[], &[&AWAY[..], settings].concat())
}

/// A folder of the test's own; gone when dropped.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("doctor-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn with(&self, name: &str, text: &str) -> String {
        let file = self.0.join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn a_file_of_rules_with_mistakes_and_one_that_is_not_there() {
    let folder = Folder::new();
    let file = folder.with("alerts.yaml", "rules:\n  - {name: a, type: threshold, metric: xlenn, threshold: 5}\n");
    let told = doctor_with(&[("MONITOR_ALERTS_CONFIG", &file)]).says("monitor.rules", "wrong");
    assert!(told.contains("xlenn") && told.contains("2:") && told.contains("check-config"), "{told}");
    let missing = folder.0.join("nothing.yaml").display().to_string();
    let told = doctor_with(&[("MONITOR_ALERTS_CONFIG", &missing)]).says("monitor.rules", "wrong");
    assert!(told.contains("nothing.yaml"), "{told}");
}

#[test]
fn nobody_is_told_links_lead_nowhere_and_the_volume_is_unknown() {
    let said = doctor_with(&[]);
    assert!(said.says("monitor.channels", "worth_knowing").contains("SLACK_WEBHOOK_URL"));
    assert!(said.says("monitor.address", "worth_knowing").contains("SERVER_URL"));
    assert!(said.says("monitor.volume", "worth_knowing").contains("PG_VOLUME_CAPACITY"));
    assert_eq!(said.code, 1, "both servers are away");
    assert_eq!(said.of("wrong"), ["redis.reached", "postgres.reached"]);
}

#[test]
fn a_spool_folder_that_cannot_be_made() {
    let folder = Folder::new();
    let below_a_file = format!("{}/spool", folder.with("a-file", ""));
    let told = doctor_with(&[("MONITOR_SPOOL_DIR", &below_a_file)]).says("monitor.spool", "wrong");
    assert!(told.contains(&below_a_file), "{told}");
    std::os::unix::fs::symlink("a-file", folder.0.join("link")).unwrap();
    let link = folder.0.join("link").display().to_string();
    let told = doctor_with(&[("MONITOR_SPOOL_DIR", &link)]).says("monitor.spool", "wrong");
    assert!(told.contains("symbolic link"), "{told}");
    let can_be_made = folder.0.join("not/yet").display().to_string();
    doctor_with(&[("MONITOR_SPOOL_DIR", &can_be_made)]).is_fine("monitor.spool");
    assert!(!folder.0.join("not").exists(), "nothing is made to find out");
}

#[test]
fn everybody_may_change_everything() {
    let open = [("MONITOR_BIND", "0.0.0.0")];
    let told = doctor_with(&open).says("monitor.access", "wrong");
    assert!(told.contains("MONITOR_AUTH"), "{told}");
    let accepted = [open[0], ("MONITOR_I_ACCEPT_THAT_ANYBODY_MAY_CHANGE_EVERYTHING", "yes")];
    doctor_with(&accepted).says("monitor.access", "worth_knowing");
    let with_token = [open[0], ("MONITOR_AUTH", "token"), ("MONITOR_ADMIN_TOKEN", "sixteen-characters")];
    doctor_with(&with_token).is_fine("monitor.access");
}

#[test]
fn a_setting_that_cannot_be_used_is_told_in_one_line_and_ends_with_2() {
    let output = run(&[], &[("MONITOR_PORT", "99999")]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told.contains("MONITOR_PORT is \"99999\"") && told.trim_end().lines().count() == 1, "{told}");
    assert!(output.stdout.is_empty());
    assert_eq!(run(&["--idle", "long"], &[]).status.code(), Some(2));
}

#[test]
fn without_json_it_is_a_line_for_each_and_the_worst_comes_first() {
    let output = run(&[], &AWAY);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let marks: Vec<char> =
        told.lines().take_while(|line| !line.is_empty()).map(|l| l.chars().next().unwrap()).collect();
    let order = |mark: &char| ['✗', '!', '✓'].iter().position(|known| known == mark).unwrap();
    assert!(marks.iter().map(order).is_sorted() && marks[0] == '✗' && marks.contains(&'✓'), "{told}");
    assert!(told.lines().next().unwrap().contains(" → "), "{told}");
    assert!(told.ends_with(" OK.\n"), "{told}");
}
