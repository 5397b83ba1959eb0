//! Delay of a notification while clients flood the monitor; a benchmark that runs only by name.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// 500 clients at one address: half announce a body and never send it, half send one byte. Each reconnects when
/// closed.
fn flood(address: &str) -> Vec<tokio::task::JoinHandle<()>> {
    let client = |n: usize| {
        let address = address.to_owned();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
                let begin: &[u8] = match n % 2 {
                    0 => b"POST /api/silences HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n",
                    _ => b"G",
                };
                let _ = stream.write_all(begin).await;
                let mut answer = [0; 512];
                while stream.read(&mut answer).await.is_ok_and(|n| n > 0) {}
            }
        })
    };
    (0..500).map(client).collect()
}

#[tokio::test]
#[ignore = "measures for a minute; run by name with --ignored --nocapture"]
async fn a_flood_of_one_address_delays_no_notification_of_a_crash() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let monitor = ground.monitor("m", &[("MONITOR_MAX_CONNECTIONS_PER_ADDRESS", "400")]).await;
    ground.alive(&monitor, &["a", "b"]).await;
    let crash = async |worker: &str| {
        let begun = Instant::now();
        ground.fleet.crash(&[worker]).await;
        ground.slack.told(&format!("Worker {worker} crashed"), SOON).await;
        begun.elapsed()
    };
    let calm = crash("a").await;
    let clients = flood(monitor.address());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut slowest, mut answered) = (Duration::ZERO, 0);
    for _ in 0..20 {
        let begun = Instant::now();
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        answered +=
            u32::from(client.get(monitor.url("/readyz")).send().await.is_ok_and(|answer| answer.status() == 200));
        slowest = slowest.max(begun.elapsed());
    }
    let flooded = crash("b").await;
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    eprintln!(
        "notified after {calm:?}, in the flood after {flooded:?}; {answered} of 20 answered, the slowest after {slowest:?}"
    );
    assert_eq!(answered, 20);
    assert!(flooded < 2 * calm + Duration::from_secs(1), "{calm:?}, in the flood {flooded:?}");
}
