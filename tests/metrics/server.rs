//! A real Prometheus scrapes the monitor: with a token, and names that nobody would think of.

use serde_json::Value;
use shepherd_monitor::contract::Name;
use shepherd_monitor::demo::reaper::is_running;
use shepherd_monitor::demo::servers::HeldPort;

use super::*;

const VIEWER: &str = "viewer-0123456789";

/// A running Prometheus that scrapes `target` every second; gone when dropped.
struct Prometheus {
    reaper: Reaper,
    port: HeldPort,
}

impl Prometheus {
    async fn start(target: &str) -> Self {
        let reaper = folder();
        let port = HeldPort::take().unwrap();
        let token = reaper.folder().join("token");
        std::fs::write(&token, VIEWER).unwrap();
        let rules = format!("{}/deploy/prometheus/rules.yml", env!("CARGO_MANIFEST_DIR"));
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{rules}]\n\
             scrape_configs:\n\
             - job_name: monitor\n\
             \x20 static_configs: [{{targets: ['{target}']}}]\n\
             \x20 authorization: {{credentials_file: {}}}\n\
             - job_name: stranger\n\
             \x20 static_configs: [{{targets: ['{target}']}}]\n",
            token.display()
        );
        let file = reaper.folder().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let (config_file, listen) =
            (format!("--config.file={}", file.display()), format!("--web.listen-address=127.0.0.1:{}", port.number()));
        let data = format!("--storage.tsdb.path={}", reaper.folder().join("data").display());
        let pid = reaper.serve(&["prometheus", &config_file, &listen, &data]).unwrap();
        let this = Self { reaper, port };
        eventually("Prometheus is ready", SOON, || async {
            assert!(is_running(pid), "Prometheus ended:\n{}", this.reaper.log_from(0));
            reqwest::get(this.url("/-/ready")).await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        this
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port.number())
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let address = reqwest::Url::parse_with_params(&self.url(path), query).unwrap();
        let answer = reqwest::get(address).await.unwrap();
        answer.json::<Value>().await.unwrap()["data"].clone()
    }

    /// Each series that an expression gives: its labels and its value.
    async fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let data = self.get("/api/v1/query", &[("query", expression)]).await;
        let series = data["result"].as_array().cloned().unwrap_or_default();
        series.into_iter().map(|s| (s["metric"].clone(), s["value"][1].as_str().unwrap().parse().unwrap())).collect()
    }
}

/// Names as hostile as Redis takes them.
fn hostile() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "\"} 1\nredis_stream_length{stream=\"made up",
        "new\nline\r\ttab\0nul",
        "back\\slash\\",
        "\\n",
        "\"",
        "a b,c=d{e}",
        "# HELP x y",
        "ünïcödé 漢字 🐑 \u{202e}turned round",
    ]
    .map(|name| name.as_bytes().to_vec())
    .into();
    names.push(b"not \xff\xfe text \xe9".to_vec());
    // Shown alike: a byte that is no text, and the text by which it is shown.
    names.push(b"caf\xe9".to_vec());
    names.push(br"caf\xe9".to_vec());
    names.push(vec![b'"'; 4096]);
    names
}

#[tokio::test]
async fn a_real_prometheus_takes_every_sample_whatever_the_names_and_nobody_without_a_token() {
    let settings = [("MONITOR_AUTH", "token"), ("MONITOR_VIEWER_TOKEN", VIEWER)];
    let ground = Ground::new(&settings).await;
    let mut connection = ground.connection().await;
    for (n, name) in hostile().iter().enumerate() {
        run_words(&mut connection, &[b"XGROUP", b"CREATE", name, name, b"0", b"MKSTREAM"]).await;
        run_words(&mut connection, &[b"XGROUP", b"CREATECONSUMER", name, name, name]).await;
        for _ in 0..n {
            run_words(&mut connection, &[b"XADD", name, b"*", b"f", b"v"]).await;
        }
        let list = [b"monitor:task_durations:".as_slice(), name].concat();
        run_words(&mut connection, &[b"LPUSH", &list, b"70"]).await;
    }
    let prometheus = Prometheus::start(ground.monitor.address()).await;
    let expected = hostile().len();
    let lengths = eventually("all streams are scraped", SOON, || async {
        let lengths = prometheus.query("redis_stream_length").await;
        // Two workers have one more.
        if lengths.len() == expected + 1 { Ok(lengths) } else { Err(format!("{lengths:?}")) }
    })
    .await;
    for (n, name) in hostile().iter().enumerate() {
        // As the pages show it, but that what is not for reading is shown too.
        let shown: String = Name::from(name.as_slice())
            .to_text()
            .chars()
            .map(|c| if c.is_control() && c != '\n' { format!("\\x{:02x}", u32::from(c)) } else { c.to_string() })
            .collect();
        let found = lengths.iter().find(|(labels, _)| labels["stream"] == shown.as_str());
        let (labels, length) = found.unwrap_or_else(|| panic!("{shown:?} is not in {lengths:?}"));
        assert_eq!((labels["db"].as_str(), *length), (Some("db0"), n as f64));
    }
    for family in ["redis_stream_group_lag", "redis_stream_group_consumer_idle_seconds"] {
        let series = prometheus.query(&format!("{family}{{stream!='arax'}}")).await;
        assert_eq!(series.len(), expected, "{family}");
        assert!(series.iter().all(|(labels, _)| labels["group"] == labels["stream"]), "{family}: {series:?}");
    }
    eventually("their tasks are counted", SOON, || async {
        let tasks = prometheus.query("shepherd_monitor_task_duration_seconds_bucket{le='0.1'} == 1").await;
        if tasks.len() == expected { Ok(()) } else { Err(format!("{tasks:?}")) }
    })
    .await;

    eventually("who has the token is answered, and nobody else", SOON, || async {
        let up = prometheus.query("up").await;
        let of = |job: &str| up.iter().find(|(labels, _)| labels["job"] == job).map(|(_, value)| *value);
        if (of("monitor"), of("stranger")) == (Some(1.0), Some(0.0)) { Ok(()) } else { Err(format!("{up:?}")) }
    })
    .await;
    // Types and help arrive with OpenMetrics, which is what it asked for.
    let metadata = prometheus.get("/api/v1/metadata", &[("metric", "shepherd_monitor_workers_lost")]).await;
    assert_eq!(metadata["shepherd_monitor_workers_lost"][0]["type"], "counter", "{metadata}");
    let targets = prometheus.get("/api/v1/targets", &[("state", "active")]).await;
    let errors: Vec<&str> =
        targets["activeTargets"].as_array().unwrap().iter().map(|t| t["lastError"].as_str().unwrap()).collect();
    assert!(errors.contains(&"") && errors.iter().any(|error| error.contains("401")), "{errors:?}");

    // Every rule was worked out, none failed, and nothing but the stranger's failure is wrong.
    let groups = eventually("the rules were worked out", SOON, || async {
        let rules = prometheus.get("/api/v1/rules", &[]).await;
        let groups = rules["groups"].as_array().unwrap().clone();
        let all = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
        if all.clone().all(|rule| rule["health"] != "unknown") { Ok(groups) } else { Err(rules) }
    })
    .await;
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert!(rules.len() > 15, "{rules:?}");
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
    assert!(rules.iter().all(|rule| rule["state"] != "firing"), "{rules:?}");
    let own = samples(&reqwest::get(prometheus.url("/metrics")).await.unwrap().text().await.unwrap());
    for refused in ["duplicate_timestamp", "out_of_order", "out_of_bounds"] {
        let name = format!("prometheus_target_scrapes_sample_{refused}_total");
        assert_eq!(value(&own, &name, &[]), Some(0.0), "{name}");
    }
}
