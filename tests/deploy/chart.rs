//! The Helm chart, rendered by Helm and looked at as a cluster would.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::demo::servers::HeldPort;
use shepherd_monitor::settings::{Settings, TABLE};

use crate::support::redis::connection;
use crate::support::wait::eventually;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/helm/shepherd-monitor");
/// Everything that can be turned on.
const FULL: &[&str] = &[
    "redis.create=true",
    "postgres.create=true",
    "postgres.volumeSize=100Gi",
    "demo.enabled=true",
    "serviceMonitor.enabled=true",
    "ingress.enabled=true",
    "ingress.host=fleet.example",
    "ingress.path=/monitor",
    "ingress.tlsSecret=certificate",
    "image.pullSecrets={registry}",
];

/// Helm and the schemas, where `scripts/install-packages test` put them.
fn tool(name: &str) -> Command {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/chart-tools");
        let asked = Command::new(script).output().unwrap();
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        String::from_utf8(asked.stdout).unwrap().trim().into()
    });
    Command::new(folder.join(name))
}

fn helm(values: &[&str]) -> Output {
    let mut helm = tool("helm");
    helm.args(["template", "fleet", CHART]);
    helm.args(values.iter().flat_map(|value| ["--set", value])).output().unwrap()
}

fn text(values: &[&str]) -> String {
    let output = helm(values);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn rendered(values: &[&str]) -> Vec<Value> {
    let text = text(values);
    let documents = text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap());
    documents.filter(|document: &Value| !document.is_null()).collect()
}

/// The one of this kind whose name ends so.
fn one<'a>(resources: &'a [Value], kind: &str, ending: &str) -> &'a Value {
    let fits = |r: &&Value| r["kind"] == kind && r["metadata"]["name"].as_str().unwrap().ends_with(ending);
    let found: Vec<&Value> = resources.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{kind} …{ending}: {found:?}");
    found[0]
}

/// The pods' templates of everything that makes pods.
fn pods(resources: &[Value]) -> Vec<&Value> {
    resources.iter().map(|r| &r["spec"]["template"]).filter(|template| template.is_object()).collect()
}

fn settings_of(resources: &[Value]) -> BTreeMap<&'static str, String> {
    let config = &one(resources, "ConfigMap", "-monitor")["data"];
    let container = &one(resources, "Deployment", "-monitor")["spec"]["template"]["spec"]["containers"][0];
    let mut given = BTreeMap::new();
    for entry in TABLE.iter() {
        let set = container["env"].as_array().unwrap().iter().find(|env| env["name"] == entry.env);
        if let Some(value) = set.map(|env| &env["value"]).or_else(|| config.get(entry.env)) {
            given.insert(entry.env, value.as_str().unwrap().to_owned());
        }
    }
    given
}

/// What the schemas say about these resources; empty when they are right.
fn mistakes(text: &str, version: &str) -> String {
    let folder = Reaper::start("chart", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    let file = folder.folder().join("resources.yaml");
    fs::write(&file, text).unwrap();
    let checked = tool("kubernetes-validate").args(["--strict", "--quiet", "-k", version]).arg(&file).output().unwrap();
    let told = [checked.stdout, checked.stderr].concat();
    let told = String::from_utf8(told).unwrap();
    // The operator's own kind is in no schema of Kubernetes.
    let (known, unknown): (Vec<&str>, _) = told.lines().partition(|line| !line.contains("kind ServiceMonitor"));
    assert!(unknown.len() <= 1, "{unknown:?}");
    assert_eq!(checked.status.success(), known.is_empty(), "{told}");
    known.join("\n")
}

#[test]
fn helm_finds_nothing_wrong_and_kubernetes_would_take_every_resource() {
    let linted = tool("helm").args(["lint", "--strict", CHART]).output().unwrap();
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
    for values in [&[][..], FULL] {
        let text = text(values);
        for version in ["1.27", "1.37"] {
            assert_eq!(mistakes(&text, version), "", "{version}, {values:?}");
        }
        // It would see a word that is not Kubernetes', and a value that is none.
        for (right, wrong) in [("enableServiceLinks", "enableServiceLink"), ("replicas: 2", "replicas: two")] {
            assert_ne!(mistakes(&text.replace(right, wrong), "1.37"), "", "{wrong}");
        }
    }
}

#[test]
fn every_container_runs_as_nobody_special_on_a_read_only_file_system() {
    for values in [&[][..], FULL] {
        let resources = rendered(values);
        let pods = pods(&resources);
        assert_eq!(pods.len(), if values.is_empty() { 1 } else { 4 });
        for pod in pods {
            let spec = &pod["spec"];
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{pod}");
            assert!(spec["securityContext"]["runAsUser"].as_u64().unwrap() > 0, "{pod}");
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{pod}");
            assert_eq!(spec["automountServiceAccountToken"], false, "{pod}");
            // Otherwise a Service called `redis` sets REDIS_PORT to an address.
            assert_eq!(spec["enableServiceLinks"], false, "{pod}");
            for container in spec["containers"].as_array().unwrap() {
                let may = &container["securityContext"];
                assert_eq!(may["readOnlyRootFilesystem"], true, "{pod}");
                assert_eq!(may["allowPrivilegeEscalation"], false, "{pod}");
                assert_eq!(may["capabilities"], serde_json::json!({"drop": ["ALL"]}), "{pod}");
            }
        }
    }
    let image = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/Dockerfile")).unwrap();
    let resources = rendered(&[]);
    let user = &pods(&resources)[0]["spec"]["securityContext"]["runAsUser"];
    assert!(image.contains(&format!("USER {user}:{user}")), "{user}");
}

#[test]
fn image_can_be_pinned_by_digest() {
    let image = |values: &[&str]| {
        let resources = rendered(values);
        one(&resources, "Deployment", "-monitor")["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    };
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let given = format!("image.digest={digest}");
    assert_eq!(image(&["image.repository=r.example/m", &given]), format!("r.example/m@{digest}"));
    assert_eq!(image(&[]), format!("shepherd-monitor:{}", env!("CARGO_PKG_VERSION")));
    assert!(!helm(&["image.digest=latest"]).status.success());
}

/// Returns the peers that may connect to the port of this component.
fn clients(resources: &[Value], server: &str) -> Vec<Value> {
    let policy = &one(resources, "NetworkPolicy", &format!("-monitor-{server}"))["spec"];
    let pod = &one(resources, "StatefulSet", &format!("-{server}"))["spec"]["template"];
    for (name, value) in policy["podSelector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&pod["metadata"]["labels"][name], value, "{server}: {name}");
    }
    assert_eq!(policy["policyTypes"], serde_json::json!(["Ingress", "Egress"]));
    assert_eq!(policy["egress"], serde_json::json!([]), "{server} opens no connections");
    let [rule] = policy["ingress"].as_array().unwrap().as_slice() else { panic!("{policy}") };
    assert_eq!(rule["ports"][0]["port"], pod["spec"]["containers"][0]["ports"][0]["name"], "{server}");
    rule["from"].as_array().unwrap().clone()
}

#[test]
fn only_the_monitor_and_labelled_pods_can_connect_to_the_servers_of_the_chart() {
    let own = |component: &str| {
        serde_json::json!({"podSelector": {"matchLabels": {
            "app.kubernetes.io/name": "shepherd-monitor",
            "app.kubernetes.io/instance": "fleet",
            "app.kubernetes.io/component": component,
        }}})
    };
    let both = ["redis.create=true", "postgres.create=true", "postgres.volumeSize=1Gi"];
    for server in ["redis", "postgres"] {
        let label = format!("shepherd-monitor/{server}-client");
        let labelled = serde_json::json!({"podSelector": {"matchLabels": {label.as_str(): "fleet"}}});
        assert_eq!(clients(&rendered(&both), server), [own("monitor"), labelled.clone()]);
        let more = format!("{server}.clients[0].namespaceSelector.matchLabels.fleet=yes");
        let other = serde_json::json!({"namespaceSelector": {"matchLabels": {"fleet": "yes"}}});
        let values = [&both[..], &["demo.enabled=true", &more]].concat();
        assert_eq!(clients(&rendered(&values), server), [own("monitor"), own("demo"), labelled, other]);
        assert_eq!(mistakes(&text(&values), "1.37"), "");
        let documented = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/install.md")).unwrap();
        assert!(documented.contains(&label), "{label}");
    }
    let policies = |values: &[&str]| rendered(values).iter().filter(|r| r["kind"] == "NetworkPolicy").count();
    assert_eq!(policies(&[]), 1, "servers elsewhere have their own policies");
    assert_eq!(policies(&[&both[..], &["networkPolicy.enabled=false"]].concat()), 0);
}

#[test]
fn each_pod_gets_only_the_secrets_that_it_needs() {
    let resources = rendered(FULL);
    let keys = |pod: &Value| -> Vec<String> {
        let container = &pod["spec"]["template"]["spec"]["containers"][0];
        let whole = container["envFrom"].as_array().into_iter().flatten().any(|from| from["secretRef"].is_object());
        assert!(!whole, "the whole Secret: {container}");
        let env = container["env"].as_array().unwrap().iter();
        env.filter_map(|env| env.pointer("/valueFrom/secretKeyRef/key")?.as_str().map(str::to_owned)).collect()
    };
    // The demo reads the settings of both servers and no others.
    let mut needed: Vec<&str> = TABLE
        .iter()
        .filter(|entry| entry.secret && ["Redis", "Postgres"].contains(&entry.group))
        .map(|entry| entry.env)
        .collect();
    let mut given = keys(one(&resources, "Deployment", "-demo"));
    needed.sort_unstable();
    given.sort_unstable();
    assert_eq!(given, needed);
    assert_eq!(keys(one(&resources, "StatefulSet", "-postgres")), ["POSTGRES_PASSWORD"]);
    assert_eq!(keys(one(&resources, "StatefulSet", "-redis")), ["REDIS_PASSWORD"; 2]);
    // No pod mounts a Secret, or gets a token of the cluster.
    for pod in pods(&resources) {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        assert!(volumes.clone().all(|volume| volume["secret"].is_null() && volume["projected"].is_null()), "{pod}");
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false, "{pod}");
        for forbidden in ["hostNetwork", "hostPID", "hostIPC", "serviceAccountName"] {
            assert!(pod["spec"][forbidden].is_null(), "{forbidden}: {pod}");
        }
    }
}

#[test]
fn two_monitors_are_probed_spread_and_never_all_evicted() {
    let resources = rendered(&[]);
    let deployment = one(&resources, "Deployment", "-monitor");
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(one(&resources, "PodDisruptionBudget", "-monitor")["spec"]["minAvailable"], 1);
    // A budget for one would keep its node from ever being emptied.
    assert!(!rendered(&["replicas=1"]).iter().any(|resource| resource["kind"] == "PodDisruptionBudget"));
    let pod = &deployment["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["livenessProbe"]["httpGet"], serde_json::json!({"path": "/livez", "port": "http"}));
    assert_eq!(container["readinessProbe"]["httpGet"], serde_json::json!({"path": "/readyz", "port": "http"}));
    assert!(container["resources"]["requests"]["memory"].is_string());
    assert!(container["resources"]["limits"]["cpu"].is_null(), "a tick that is throttled is late");
    // What waits on the disk has a place, although nothing else may be written.
    let spool = settings_of(&resources).remove("MONITOR_SPOOL_DIR").unwrap();
    let mount = container["volumeMounts"].as_array().unwrap().iter().find(|m| m["mountPath"] == spool.as_str());
    let volume = pod["spec"]["volumes"].as_array().unwrap().iter().find(|v| v["name"] == mount.unwrap()["name"]);
    assert!(volume.unwrap()["emptyDir"]["sizeLimit"].is_string());
    // Who selects pods selects these.
    let labels = pod["metadata"]["labels"].as_object().unwrap();
    for (kind, selector) in [
        ("Deployment", "/spec/selector/matchLabels"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
        ("Service", "/spec/selector"),
    ] {
        let wanted = one(&resources, kind, "-monitor").pointer(selector).unwrap().as_object().unwrap();
        assert!(!wanted.is_empty() && wanted.iter().all(|(name, value)| labels.get(name) == Some(value)), "{kind}");
    }
}

#[test]
fn what_the_chart_sets_the_monitor_takes() {
    let mut given = settings_of(&rendered(FULL));
    // From the Secret.
    given.insert("MONITOR_ADMIN_TOKEN", "an administrators token".to_owned());
    let settings = Settings::from(&given).unwrap();
    settings.may_serve().unwrap();
    assert_eq!(settings.root_path, "/monitor");
    assert_eq!(settings.server_url.as_deref(), Some("https://fleet.example/monitor"));
    assert!(settings.redis_url.reveal().contains("fleet-shepherd-monitor-redis:6379"));
    assert!(settings.database_url.reveal().contains("fleet-shepherd-monitor-postgres:5432"));
    given.remove("MONITOR_ADMIN_TOKEN");
    assert!(Settings::from(&given).is_err(), "there is a token that nobody chose");
}

#[test]
fn one_size_is_the_databases_claim_and_what_the_disk_figures_go_by() {
    let resources = rendered(FULL);
    let claim = &one(&resources, "StatefulSet", "-postgres")["spec"]["volumeClaimTemplates"][0];
    let asked = claim["spec"]["resources"]["requests"]["storage"].as_str().unwrap();
    assert_eq!(settings_of(&resources)["PG_VOLUME_CAPACITY"], asked);
    let elsewhere = rendered(&["postgres.volumeSize=7Ti"]);
    assert_eq!(settings_of(&elsewhere)["PG_VOLUME_CAPACITY"], "7Ti");
    let refused = helm(&["postgres.create=true"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("postgres.volumeSize is empty"), "{refused:?}");
}

#[test]
fn whole_numbers_in_a_values_file_and_ports_beside_hosts_are_taken_as_written() {
    let folder = std::env::temp_dir().join(format!("chart-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("values.yaml");
    for (host, has_port) in [("db", false), ("db:5433", true), ("'[::1]:5433'", true), ("'db1:5433,db2:5433'", true)] {
        let values = format!("settings: {{PG_VOLUME_CAPACITY: 107374182400, POSTGRES_HOST: {host}}}");
        std::fs::write(&file, values).unwrap();
        let output = tool("helm").args(["template", "fleet", CHART, "-f"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("PG_VOLUME_CAPACITY: \"107374182400\""), "{host}: {text}");
        assert_eq!(text.contains("POSTGRES_PORT:"), !has_port, "{host}: {text}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn settings_go_through_by_their_names_and_secrets_only_by_the_secret() {
    const OURS: [&str; 3] = ["MONITOR_BIND", "MONITOR_PORT", "MONITOR_SPOOL_DIR"];
    let names = |secret| TABLE.iter().filter(move |entry| entry.secret == secret).map(|entry| entry.env);
    let open: Vec<&str> = names(false).filter(|env| !OURS.contains(env)).collect();
    let values: Vec<String> = open.iter().map(|env| format!("settings.{env}=5")).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let resources = rendered(&values);
    for env in open {
        assert_eq!(one(&resources, "ConfigMap", "-monitor")["data"][env], "5", "{env}");
    }
    for env in names(true).chain(OURS) {
        let refused = helm(&[&format!("settings.{env}=5")]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains(env), "{env}: {refused:?}");
    }
    // No text of a Secret is made here.
    assert!(!rendered(FULL).iter().any(|resource| resource["kind"] == "Secret"));
}

#[test]
fn who_asks_and_who_scrapes_reaches_the_monitor() {
    let resources = rendered(FULL);
    let container = &one(&resources, "Deployment", "-monitor")["spec"]["template"]["spec"]["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(settings_of(&resources)["MONITOR_PORT"], port["containerPort"].to_string());
    let service = one(&resources, "Service", "fleet-shepherd-monitor");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
    let scraped = one(&resources, "ServiceMonitor", "-monitor");
    let endpoint = &scraped["spec"]["endpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&service["spec"]["ports"][0]["name"], &"/metrics".into()));
    assert_eq!(endpoint["authorization"]["credentials"]["key"], "MONITOR_VIEWER_TOKEN");
    for (name, value) in scraped["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&service["metadata"]["labels"][name], value, "{name}");
    }
    let way = &one(&resources, "Ingress", "-monitor")["spec"]["rules"][0]["http"]["paths"][0];
    assert_eq!((&way["path"], &way["pathType"]), (&"/monitor".into(), &"Prefix".into()));
    assert_eq!(way["backend"]["service"]["name"], service["metadata"]["name"]);

    let policy = &one(&resources, "NetworkPolicy", "-monitor")["spec"];
    assert_eq!(policy["ingress"][0]["ports"][0]["port"], port["name"]);
    let out: Vec<u64> = policy["egress"].as_array().unwrap().iter().flat_map(ports).collect();
    assert_eq!(out, [53, 53, 6379, 5432, 443, 587]);
    for elsewhere in [
        ["settings.REDIS_PORT=6380", "settings.POSTGRES_PORT=6432", "settings.SMTP_PORT=2525"],
        ["settings.REDIS_HOST=redis:6380", "settings.POSTGRES_HOST=pooler:6432", "settings.SMTP_HOST=mail:2525"],
    ] {
        let elsewhere = rendered(&elsewhere);
        let policy = &one(&elsewhere, "NetworkPolicy", "-monitor")["spec"];
        let out: Vec<u64> = policy["egress"].as_array().unwrap().iter().flat_map(ports).collect();
        assert_eq!(out, [53, 53, 6380, 6432, 443, 587, 2525]);
        let mut given = settings_of(&elsewhere);
        given.insert("MONITOR_ADMIN_TOKEN", "an administrators token".to_owned());
        Settings::from(&given).unwrap();
    }
}

#[test]
fn certificates_and_secrets_in_files_can_be_mounted() {
    let mounted = [
        "settings.POSTGRES_SSLROOTCERT=/etc/authorities/ca.pem",
        "extraVolumes[0].name=authorities",
        "extraVolumes[0].secret.secretName=authorities",
        "extraVolumeMounts[0].name=authorities",
        "extraVolumeMounts[0].mountPath=/etc/authorities",
    ];
    for values in [mounted.to_vec(), [&mounted[..], &["rules=x"]].concat()] {
        let resources = rendered(&values);
        let pod = &one(&resources, "Deployment", "-monitor")["spec"]["template"]["spec"];
        let named = |list: &Value| list.as_array().unwrap().iter().any(|one| one["name"] == "authorities");
        assert!(named(&pod["volumes"]) && named(&pod["containers"][0]["volumeMounts"]));
        assert_eq!(mistakes(&text(&values), "1.37"), "");
    }
}

#[test]
fn the_charts_postgres_makes_the_database_that_is_set() {
    let resources = rendered(&["postgres.create=true", "postgres.volumeSize=1Gi", "settings.POSTGRES_DB=fleet"]);
    let container = &one(&resources, "StatefulSet", "-postgres")["spec"]["template"]["spec"]["containers"][0];
    let made = container["env"].as_array().unwrap().iter().find(|one| one["name"] == "POSTGRES_DB").unwrap();
    assert_eq!(made["value"], "fleet");
    assert!(container["readinessProbe"]["exec"]["command"].to_string().contains("--dbname=fleet"));
}

#[test]
fn the_network_policy_opens_the_ports_that_are_in_use_and_what_is_added() {
    let resources = rendered(&[
        "networkPolicy.redisPorts={6380,26379}",
        "networkPolicy.postgresPorts={6432}",
        "settings.SMTP_PORT=2525",
        "networkPolicy.extraEgress[0].ports[0].port=3128",
        "openshift=true",
    ]);
    let policy = &one(&resources, "NetworkPolicy", "-monitor")["spec"];
    let out: Vec<u64> = policy["egress"].as_array().unwrap().iter().flat_map(ports).collect();
    assert_eq!(out, [53, 53, 5353, 5353, 6380, 26379, 6432, 443, 587, 2525, 3128]);
    assert_eq!(mistakes(&text(&["networkPolicy.redisPorts={6380}", "settings.SMTP_PORT=465"]), "1.37"), "");
}

#[test]
fn openshift_chooses_the_user_and_every_pod_listens_on_both_kinds_of_address() {
    let of_openshift = text(&[FULL, &["openshift=true"]].concat());
    for fixed in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert!(!of_openshift.contains(fixed), "{fixed}");
    }
    assert!(of_openshift.contains("runAsNonRoot: true"));
    assert_eq!(mistakes(&of_openshift, "1.37"), "");
    let mut helm = tool("helm");
    helm.args(["template", "fleet", CHART, "--api-versions", "security.openshift.io/v1"]);
    assert!(!String::from_utf8(helm.output().unwrap().stdout).unwrap().contains("runAsUser"), "noticed by itself");
    assert_eq!(settings_of(&rendered(&[]))["MONITOR_BIND"], "::");
    assert_eq!(settings_of(&rendered(&["bind=0.0.0.0"]))["MONITOR_BIND"], "0.0.0.0");
}

/// A password with all that shells and Redis' configuration read in their own way.
const ODD: &str = r#"a "b" \c \\ $HOME `d` 'e' &/#é "#;

/// Runs what starts Redis with that password, in which `from` becomes `to` beside a port and a folder of the test's.
async fn takes_an_odd_password(script: &str, from: &str, to: &str, variable: &str) {
    let server = Reaper::start("odd-redis", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
    let port = HeldPort::take().unwrap();
    let number = port.number().to_string();
    let folder = server.folder().display().to_string();
    assert!(script.contains(from), "{script}");
    let here = script.replace(from, to).replace("PORT", &number).replace("FOLDER", &folder);
    let start = server.folder().join("start");
    fs::write(&start, here).unwrap();
    let entry = server.folder().join("docker-entrypoint.sh");
    fs::write(&entry, "#!/bin/sh\nexec \"$@\"\n").unwrap();
    fs::set_permissions(&entry, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("PATH={folder}:{}", std::env::var("PATH").unwrap());
    drop(port);
    let password = format!("{variable}={ODD}");
    server.serve(&["env", &path, &password, "sh", &start.display().to_string()]).unwrap();
    let url = format!("redis://127.0.0.1:{number}");
    eventually("it takes its password and no other", Duration::from_secs(20), || async {
        let mut redis = connection(&url, Duration::from_secs(5)).await?;
        let wrong = redis::cmd("AUTH").arg("a").query_async::<String>(&mut redis).await;
        assert!(wrong.is_err(), "it takes any password");
        redis::cmd("AUTH").arg(ODD).query_async::<String>(&mut redis).await
    })
    .await;
    server.end().unwrap();
}

#[tokio::test]
async fn the_charts_and_the_compose_files_redis_take_a_password_of_any_characters() {
    let resources = rendered(FULL);
    let container = &one(&resources, "StatefulSet", "-redis")["spec"]["template"]["spec"]["containers"][0];
    let script = container["command"][2].as_str().unwrap();
    takes_an_odd_password(script, "dir /data", "port PORT\ndir FOLDER", "REDIS_PASSWORD").await;

    let compose = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/compose.yaml")).unwrap();
    let compose: Value = serde_saphyr::from_str(&compose).unwrap();
    let command = compose["services"]["redis"]["command"].as_array().unwrap();
    assert_eq!((&command[0], &command[1]), (&"sh".into(), &"-c".into()));
    // As compose hands it on.
    let script = command[2].as_str().unwrap().replace("$$", "$");
    let content = compose["configs"]["redis"]["content"].as_str().unwrap();
    let file = "FOLDER/redis.conf";
    let make = format!("cat >{file} <<'CONFIG'\nport PORT\ndir FOLDER\n{content}CONFIG\n{script}");
    takes_an_odd_password(&make, "/etc/redis.conf", file, "REDISCLI_AUTH").await;
}

fn ports(rule: &Value) -> Vec<u64> {
    rule["ports"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn the_charts_redis_wants_its_password_keeps_its_data_and_is_ready_when_it_says_pong() {
    let resources = rendered(FULL);
    let container = &one(&resources, "StatefulSet", "-redis")["spec"]["template"]["spec"]["containers"][0];
    let command: Vec<&str> = container["command"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    assert_eq!(command[..2], ["sh", "-c"]);
    let server = Reaper::start("chart-redis", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
    let port = HeldPort::take().unwrap();
    let number = port.number().to_string();
    assert!(command[2].contains("\ndir /data\n"));
    let here = command[2].replace("dir /data", &format!("port {number}\ndir {}", server.folder().display()));
    let script = server.folder().join("start");
    fs::write(&script, here).unwrap();
    drop(port);
    let script = script.display().to_string();
    server.serve(&["env", "REDIS_PASSWORD=quite a secret", "sh", &script]).unwrap();
    let url = format!("redis://:quite%20a%20secret@127.0.0.1:{number}");
    let mut redis = eventually("it takes its password", Duration::from_secs(20), || async {
        let mut redis = connection(&url, Duration::from_secs(5)).await?;
        redis::cmd("PING").query_async::<String>(&mut redis).await.map(|_| redis)
    })
    .await;
    for (name, wanted) in [("appendonly", "yes"), ("maxmemory-policy", "noeviction")] {
        let get: (String, String) = redis::cmd("CONFIG").arg("GET").arg(name).query_async(&mut redis).await.unwrap();
        assert_eq!(get.1, wanted, "{name}");
    }

    let probe = container["readinessProbe"]["exec"]["command"].as_array().unwrap();
    assert_eq!(container["startupProbe"]["exec"], container["readinessProbe"]["exec"]);
    let healthy = |password: &str| {
        let words: Vec<String> = probe.iter().map(|word| word.as_str().unwrap().to_owned()).collect();
        let words: Vec<String> =
            words.iter().map(|w| w.replace("redis-cli", &format!("redis-cli -p {number}"))).collect();
        Command::new(&words[0]).args(&words[1..]).env("REDISCLI_AUTH", password).status().unwrap().success()
    };
    assert!(healthy("quite a secret"));
    // As a Secret holds it that was made from a file; the server's start and the monitor drop the line break.
    assert!(healthy("quite a secret\n"));
    assert!(!healthy("another"));
    server.end().unwrap();
    assert!(!healthy("quite a secret"));
}
