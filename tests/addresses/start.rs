//! What the program says at its start about variables.

use super::*;
use crate::support::monitor::Monitor;

#[tokio::test]
async fn a_misspelt_setting_is_named_in_the_log_and_by_doctor() {
    let settings = [
        NO_REDIS,
        NO_POSTGRES,
        ("MONITOR_POL_INTERVAL_SEC", "1"),
        ("REDIS_SERVICE_HOST", "10.0.0.1"),
        ("REDIS_PORT", "tcp://10.0.0.1:6379"),
    ];
    let monitor = Monitor::start(&settings).await;
    let log = monitor.log();
    let warning = "MONITOR_POL_INTERVAL_SEC is not a setting and is ignored; did you mean MONITOR_POLL_INTERVAL_SEC?";
    assert!(log.contains(warning) && !log.contains("REDIS_SERVICE_HOST"), "{log}");
    assert!(finding(&settings, "monitor.settings").contains(warning));
    assert_eq!(finding(&settings[..2], "monitor.settings"), "");
}

#[test]
fn a_secret_in_a_file_is_read_and_one_that_cannot_be_read_is_named() {
    let folder = std::env::temp_dir().join(format!("shepherd-secrets-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("url");
    std::fs::write(&file, "redis://127.0.0.1:1/0\n").unwrap();
    let said = finding(&[("REDIS_URL_FILE", file.to_str().unwrap()), NO_POSTGRES], "redis.reached");
    assert!(said.contains("Connection refused"), "{said}");
    let output = run(&["doctor"], &[("SMTP_PASSWORD_FILE", "/no/such/file"), NO_REDIS, NO_POSTGRES]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("SMTP_PASSWORD_FILE is \"/no/such/file\"") && said.contains("No such file"), "{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}
